"""Training an EAGLE-3 head: ``python -m eagle.train {generate,vocab,fit,export,run}``; or a sorted draft: ``sorted``
and ``export-sorted``.

  generate  answers by the target itself
  given     answers that conversations hold already, to be trained on beside them (--also)
  vocab     the draft vocabulary, from the answers
  fit       the training
  export    the head, in the official and the speculators layout, with a model card
  run       all four, one after the other
  sorted    the target's first layers, with exits, on the same answers and vocabulary
  export-sorted  these as a draft, and where all of it was trained each exit as a model

Every stage goes on where it was interrupted. They share a folder (--out); the merged settings are in its config.yaml.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from eagle import assets
from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.writing import OFFICIAL
from eagle.model.loading import existing_device
from eagle.program import run_program
from eagle.target.base import load_base
from eagle.target.target import Target
from eagle.train import options
from eagle.train.answers import ANSWERS, read_answers
from eagle.train.batches import split
from eagle.train.compare import accepted_lengths
from eagle.train.export import ExportSettings, export, folder_of
from eagle.train.fit import fit
from eagle.train.fit_settings import FitSettings
from eagle.train.generate import GenerateSettings, generate
from eagle.train.given import GIVEN, GivenSettings, take_given
from eagle.train.initial import INITIALS, new_head
from eagle.train.progress import read_metrics
from eagle.train.settings import CONFIG
from eagle.train.sorted_export import EXPORT_SORTED, SortedExportSettings, export_sorted
from eagle.train.sorted_fit import SORTED, fit_sorted
from eagle.train.sorted_settings import SortedSettings
from eagle.train.vocab import VOCABULARY, DraftVocabulary, VocabSettings, build_vocabulary

RUN = "run"
CONFIG_HELP = "YAML with a mapping of settings for each stage; options come before it"
INTERRUPTED = "interrupted; what is finished is saved, and the same command resumes"
# Settings that all stages share, where they have them.
SHARED = ("base_model_path", "out", "dtype", "device")
# Minutes on two cores: few short answers, few steps.
SMOKE: dict[str, dict[str, Any]] = {
    "generate": {"limit": 320, "max_new_tokens": 96, "max_prompt_tokens": 160},
    "vocab": {},
    "fit": {"drafting_steps": 5, "epochs": 3, "every": 1000, "max_length": 256, "keep_readings": True},
    "export": {},
    "sorted": {"epochs": 2, "every": 1000, "max_length": 256, "keep_readings": True},
}
SMOKE_SORTED = ("generate", "vocab", "sorted", "export-sorted")
SMOKE_PROMPTS, SMOKE_CONTEXTS = 6, 6


@dataclass(frozen=True)
class Stage:
    """A stage: its settings, and what it does."""

    settings: type[Any]
    work: Callable[[Any], object]
    summary: str


RUNS = ("generate", "vocab", "fit", "export")
STAGES = {
    "generate": Stage(GenerateSettings, generate, "answers by the target itself"),
    GIVEN: Stage(GivenSettings, take_given, "answers that conversations hold already"),
    "vocab": Stage(VocabSettings, build_vocabulary, "the draft vocabulary"),
    "fit": Stage(FitSettings, fit, "train the head"),
    "export": Stage(ExportSettings, export, "write the trained head"),
    SORTED: Stage(SortedSettings, fit_sorted, "train a sorted draft, the target's first layers with exits"),
    EXPORT_SORTED: Stage(SortedExportSettings, export_sorted, "write the trained sorted draft"),
}


def parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parse = argparse.ArgumentParser(
        prog="python -m eagle.train",
        description=(__doc__ or "").partition("\n")[0],
        epilog="Every stage goes on where it was interrupted.",
        allow_abbrev=False,
    )
    commands = parse.add_subparsers(dest="stage", required=True, metavar="{" + ",".join([*STAGES, RUN]) + "}")
    for name, stage in STAGES.items():
        one = commands.add_parser(name, help=stage.summary, description=stage.summary, allow_abbrev=False)
        one.add_argument("--config", type=Path, help=CONFIG_HELP)
        options.add_options(one, stage.settings)
        if name == SORTED:
            one.add_argument(
                "--smoke", action="store_true", help="few answers and steps of it all; exit status 1 if it was in vain"
            )
    every = commands.add_parser(RUN, help="all of them", description="all stages", allow_abbrev=False)
    every.add_argument("--config", type=Path, help=CONFIG_HELP)
    every.add_argument(
        "--smoke",
        action="store_true",
        help="few answers and steps, then a comparison with untrained heads; exit status 1 if training was in vain",
    )
    options.add_options(
        every, GenerateSettings, skip=tuple(name for name in options.names(GenerateSettings) if name not in SHARED)
    )
    for name in RUNS:
        stage = STAGES[name]
        options.add_options(every.add_argument_group(name), stage.settings, prefix=f"{name}.", skip=SHARED)
    return parse


def train(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser().parse_args(argv)
    names = list(RUNS) if args.stage == RUN else [args.stage]
    if args.stage == SORTED and args.smoke:
        names = list(SMOKE_SORTED)
    kinds = {name: stage.settings for name, stage in STAGES.items()}
    read = options.read_config(args.config, kinds) if args.config else {}
    smoke = SMOKE if args.stage in (RUN, SORTED) and args.smoke else {}
    merged: dict[str, Any] = {}
    for name in names:
        kind = kinds[name]
        said = options.given(args, kind) | (options.given(args, kind, f"{name}.") if args.stage == RUN else {})
        merged[name] = kind(**smoke.get(name, {}) | read.get(name, {}) | said)
    out = merged[names[0]].folder
    for name in names:
        if len(names) > 1:
            assets.say(f"--- {name} ---")
        with options.on_record(out / CONFIG, name, merged[name]):
            STAGES[name].work(merged[name])
    if smoke and args.stage == RUN:
        compare_with_untrained(merged["fit"], out)
    elif smoke:
        compare_with_the_start(out)


def compare_with_the_start(out: Path) -> None:
    """Print how near each exit of a sorted draft is to the target on held-out answers, before and after training.

    Raises:
        SystemExit: (status 1) an exit is no nearer than before.
    """
    before, *_, after = (line["overlap"] for line in read_metrics(out / SORTED) if line["kind"] == "held_out")
    print("\noverlap with the target on held-out answers")
    print(f"{'':<10}" + "".join(f"{f'exit {number}':>10}" for number in range(1, 1 + len(before))))
    for name, values in (("untrained", before), ("trained", after)):
        print(f"{name:<10}" + "".join(f"{value:>10.3f}" for value in values))
    if any(late <= early for early, late in zip(before, after, strict=True)):
        print("an exit is no nearer to the target than before training", file=sys.stderr)
        raise SystemExit(1)


def compare_with_untrained(settings: FitSettings, out: Path) -> None:
    """Print what trees of 16 nodes have accepted, of the exported head and of those a training may start from.

    Raises:
        SystemExit: (status 1) the trained head is not the best with every method.
    """
    path, device = assets.resolve_base(settings.base_model_path), existing_device(settings.device)
    target = Target(load_base(path, dtype=settings.torch_dtype, device_map={"": device}))
    trained = load_head(str(folder_of(out, OFFICIAL)), target)
    vocabulary = DraftVocabulary.load(out / VOCABULARY)
    heads = {"trained": trained}
    for initial in INITIALS:
        head, _ = new_head(target, trained.config, vocabulary, initial, settings.seed)
        heads[f"untrained, from {initial}"] = head.to(target.dtype).requires_grad_(False)
    _, held_out = split(read_answers(out / ANSWERS), settings.max_length, settings.held_out)
    prompts = [document.tokens[: document.start] for document in held_out[:SMOKE_PROMPTS]]
    found = {
        name: {
            method: fmean(chain.from_iterable(lengths))
            for method, lengths in accepted_lengths(target, head, prompts, SMOKE_CONTEXTS, temperature=1.0).items()
        }
        for name, head in heads.items()
    }
    methods = list(found["trained"])
    print("\nexpected accepted length on held-out prompts, T=1, trees of 16 nodes")
    print(f"{'head':<24}" + "".join(f"{method:>10}" for method in methods))
    for name, lengths in found.items():
        print(f"{name:<24}" + "".join(f"{lengths[method]:>10.3f}" for method in methods))
    others = [lengths for name, lengths in found.items() if name != "trained"]
    if any(found["trained"][method] <= lengths[method] for lengths in others for method in methods):
        print("the trained head does not accept more than an untrained one", file=sys.stderr)
        raise SystemExit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(train, argv, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
