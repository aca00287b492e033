"""Writing a trained head for those who use it: the official layout, and the one of vLLM's ``speculators``.

    <out>/head/               official: EAGLE, SGLang, vLLM and this package
    <out>/head-speculators/   vLLM's speculators, with its own name of the target

Both hold the weights of the checkpoint that did best on the held-out answers, and the official one a model card.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eagle import assets
from eagle.decoding.stored_trees import TREE_FILE
from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.head import Eagle3Head
from eagle.drafters.eagle3.writing import LAYOUTS, OFFICIAL, write_head
from eagle.errors import InputError
from eagle.target.base import load_base
from eagle.target.target import Target
from eagle.train import options
from eagle.train.fit import FIT
from eagle.train.fit_settings import FitSettings
from eagle.train.generate import GenerateSettings
from eagle.train.losses import Loss
from eagle.train.progress import RunFolder, read_metrics
from eagle.train.settings import CONFIG, StageSettings
from eagle.train.vocab import VocabSettings

HEAD = "head"
CARD = "README.md"
WEIGHTS = ("bfloat16", "float16", "float32")
# What the embedded model is called on the hub.
EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class ExportSettings(StageSettings):
    """What ``export`` does; the metadata are the help texts of the program."""

    step: int | None = field(
        default=None, metadata={"help": "checkpoint to export; default: the best on held-out answers"}
    )
    verifier: str | None = field(
        default=None,
        metadata={"help": "name of the target in the speculators layout; default: where it was loaded from"},
    )
    unimproved: bool = field(
        default=False, metadata={"help": "export a head that is no better than its start on held-out answers, too"}
    )
    weights: str = field(default="bfloat16", metadata={"help": "dtype of the exported weights"})
    licence: str = field(default="apache-2.0", metadata={"help": "of the head, for its model card"})

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise InputError(f"--weights must be one of {', '.join(WEIGHTS)}, not {self.weights!r}")


def folder_of(out: Path, layout: str) -> Path:
    """Where the head of a training goes in a layout."""
    return out / (HEAD if layout == OFFICIAL else f"{HEAD}-{layout}")


def export(settings: ExportSettings) -> None:
    """Write both layouts and the model card.

    Raises:
        InputError: no checkpoint, one for another target or one that training has not improved, or a folder that
            cannot be written to.
    """
    out = settings.folder
    run = RunFolder(out / FIT)
    checkpoint, held_out = chosen(run, settings.step, settings.unimproved)
    path = assets.resolve_base(settings.base_model_path)
    embedded = settings.base_model_path in (None, assets.DEFAULT_PAIR)
    verifier = settings.verifier or (EMBEDDED_ON_HUB if embedded else str(settings.base_model_path))
    card = model_card(settings, out, run, held_out, verifier)
    with tqdm(total=2 + len(LAYOUTS), desc="loading", unit="part", dynamic_ncols=True) as bar:
        target = Target(load_base(path, dtype="auto", device_map={"": "cpu"}))
        bar.update()
        # Whatever the target's dtype, weights leave the head as wide as they were trained.
        head = load_head(str(checkpoint), target, torch.float32)
        for layout in LAYOUTS:
            bar.set_description(layout)
            bar.update()
            _write(folder_of(out, layout), layout, head, target, settings, card, verifier)
        bar.update()
    for layout in LAYOUTS:
        assets.say(f"{folder_of(out, layout)}: {layout} layout of {checkpoint.name}")


def _write(
    folder: Path,
    layout: str,
    head: Eagle3Head,
    target: Target,
    settings: ExportSettings,
    card: str,
    verifier: str,
) -> None:
    """Put a head in place of what was in its folder, whole or not at all."""
    with replaced(folder) as temporary:
        write_head(head, target, temporary, layout, getattr(torch, settings.weights), verifier)
        if layout == OFFICIAL:
            (temporary / CARD).write_text(card, encoding="utf-8")


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write to, which then takes the place of another, but for its trees.

    Raises:
        InputError: the disk refused.
    """
    temporary = folder.with_name(f".{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if (folder / TREE_FILE).is_file():
            assets.say(f"{folder / TREE_FILE} stays: trees searched for what was exported before")
            shutil.copy2(folder / TREE_FILE, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}") from error


def chosen(run: RunFolder, step: int | None, unimproved: bool) -> tuple[Path, list[dict[str, Any]]]:
    """The checkpoint of a step, or the best on held-out answers, and the evaluations up to it.

    Raises:
        InputError: there is none, or it is no better than what training began with, and not wanted then.
    """
    checkpoint = run.best() if step is None else run.checkpoint(step)
    if not checkpoint.is_dir():
        kept = ", ".join(str(int(path.name.removeprefix("step-"))) for path in run.checkpoints())
        raise InputError(f"there is no checkpoint {checkpoint}; those kept are of the steps {kept}")
    held_out = _evaluations(run, int(checkpoint.name.removeprefix("step-")))
    if not (unimproved or held_out[-1]["accepted"] > held_out[0]["accepted"]):
        raise InputError(
            f"{checkpoint.name} has {held_out[-1]['accepted']:.3f} tokens accepted on held-out answers, what training "
            f"began with had {held_out[0]['accepted']:.3f}; train longer or with other learning rates, or export it "
            "all the same with --unimproved"
        )
    return checkpoint, held_out


def _evaluations(run: RunFolder, step: int) -> list[dict[str, Any]]:
    """The evaluations of a run on held-out answers, from its start to a step.

    Raises:
        InputError: the metrics do not have them.
    """
    found = [line for line in read_metrics(run.path) if line["kind"] == "held_out" and line["step"] <= step]
    if not found or found[0]["step"] != 0 or found[-1]["step"] != step:
        raise InputError(f"{run.metrics} lacks the evaluations from step 0 to step {step}; restore it, or train again")
    return found


def model_card(
    settings: ExportSettings, out: Path, run: RunFolder, held_out: Sequence[dict[str, Any]], verifier: str
) -> str:
    """The text of a head's README: what it is, what it was trained on and how, and what it does on held-out answers.

    Args:
        settings: of the export.
        out: folder of the training.
        run: its training run.
        held_out: its evaluations up to the exported checkpoint.
        verifier: name of the target.
    """
    trained = run.settings()
    first, last = held_out[0], held_out[-1]
    rows = "\n".join(
        f"| {number} | {loss:.3f} | {top1:.3f} | {overlap:.3f} | {before:.3f} |"
        for number, (loss, top1, overlap, before) in enumerate(
            zip(last["loss"], last["top1"], last["overlap"], first["overlap"], strict=True), start=1
        )
    )
    return f"""---
license: {settings.licence}
base_model: {verifier}
tags: [eagle3, speculative-decoding]
---

# EAGLE-3 draft head for {verifier}

Trained with `python -m eagle.train` on answers of the target itself. Official EAGLE-3 layout, {settings.weights}.

| | |
| --- | --- |
| answers | {trained["documents"]:,} |
| optimizer steps | {last["step"]:,} |
| answer tokens trained on | {last["tokens"]:,} |
| time of the steps | {last["seconds"] / 60:.0f} minutes |
| drafting steps in training | {trained["drafting_steps"]} |
| started from | {trained["initial"]} |
| loss | {Loss(trained["loss"], trained["acceptance_weight"], trained["adaptivity"])} |

## On held-out answers of the target

Overlap is sum min(p, q): how often a token sampled from the head is accepted by the target at temperature 1. Along the
held-out answers a chain of {trained["drafting_steps"]} has {last["accepted"]:.3f} tokens accepted, before training
{first["accepted"]:.3f}.

| drafting step | loss | top-1 agreement | overlap | overlap before training |
| --- | --- | --- | --- | --- |
{rows}

## Commands

```
{_commands(out, settings)}
```
"""


def _commands(out: Path, settings: ExportSettings) -> str:
    """The command of each stage, from the settings it was run with where they are on record."""
    file = out / CONFIG
    kinds = {"generate": GenerateSettings, "vocab": VocabSettings, "fit": FitSettings, "export": ExportSettings}
    recorded = options.read_config(file, kinds) if file.is_file() else {}
    recorded["export"] = vars(settings)
    # Where somebody's training lay is not part of it.
    return "\n".join(
        options.command(stage, kinds[stage], {**recorded[stage], "out": None}) for stage in kinds if stage in recorded
    )
