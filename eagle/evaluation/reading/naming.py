"""What a run is called: model, method, temperature and top_p, and short labels that tell runs apart."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eagle.evaluation.answering.records import RunFiles

BASELINE = "baseline"
# How the file name ends, and what people call the method.
LABELS = {BASELINE: "autoregressive", "ea": "EAGLE-3", "ea_hsd": "HSD"}
# The kinds of tree and rules behind two of these names; see eagle.decoding.method.
USUAL = {("deterministic", "tokenwise"): "ea", ("hybrid", "hsd"): "ea_hsd"}
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
DRAFTER_LABELS = {
    "draft": "draft model, ",
    "sorted": "sorted draft, ",
    "lookup": "look-up, ",
    "suffix": "suffix decoding, ",
    "recycling": "recycling, ",
    "eagle3+lookup": "EAGLE-3 with look-up, ",
    "eagle3+suffix": "EAGLE-3 with suffixes, ",
}
ABLATION = re.compile(
    rf"ea_(?:(?P<drafter>{'|'.join(map(re.escape, DRAFTER_LABELS))})_)?(?P<tree>[a-z]+)_(?P<verifier>.+)"
)
# What a settings file tells of where a run was timed.
TIMED_WITH = ("device", "dtype", "load_in_8bit", "quantize")
TIMED_ON = ("device_name", "platform", "threads", "torch")
STEM = re.compile(rf"(?P<model>.+)-temperature-(?P<temperature>{NUMBER})(?:-top_p-(?P<top_p>{NUMBER}))?_(?P<method>.+)")


@dataclass(frozen=True)
class About:
    """What a run was made with, as far as its files tell.

    Attributes:
        model: the model's id in the file name; the whole stem of a name of another form.
        method: how the file name ends: ``baseline``, ``ea``, ``ea_hsd``, ``ea_<tree>_<verifier>``, or
            ``ea_<drafter>_<tree>_<verifier>`` of another drafter than the head.
        temperature: of sampling; None where nothing tells.
        top_p: of sampling, 1 is off.
        questions: SHA-256 of the file of questions; None where nothing tells.
        timed: what speed depends on beside the method, as far as it is known.
    """

    model: str
    method: str
    temperature: float | None
    top_p: float
    questions: str | None = None
    timed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether it is autoregressive decoding."""
        return self.method == BASELINE

    @property
    def order(self) -> tuple[str, float, float, int]:
        """To sort runs by: model, temperature, top_p, then the baseline, EAGLE-3, HSD and anything else."""
        temperature = -1.0 if self.temperature is None else self.temperature
        usual = list(LABELS)
        place = usual.index(self.method) if self.method in LABELS else len(usual)
        return self.model, temperature, self.top_p, place

    @property
    def method_label(self) -> str:
        """The method as people call it."""
        parts = ABLATION.fullmatch(self.method)
        if self.method in LABELS or parts is None:
            return LABELS.get(self.method, self.method)
        drafter = DRAFTER_LABELS.get(parts["drafter"], "")
        return f"{drafter}{parts['tree']} tree, {parts['verifier']}"


def about(files: RunFiles) -> About:
    """Read the settings beside the answers; what they do not say, the file name does.

    A settings file that cannot be read is named on standard error.
    """
    stem = files.answers.name.removesuffix(".jsonl")
    found = STEM.fullmatch(stem)
    settings, environment = _recorded(files)
    method = _method(settings) or (found["method"] if found else stem)
    questions = settings.get("questions_sha256")
    return About(
        model=found["model"] if found else stem,
        method=method,
        temperature=_number(settings, "temperature", float(found["temperature"]) if found else None),
        top_p=_number(settings, "top_p", float(found["top_p"]) if found and found["top_p"] else None) or 1.0,
        questions=questions if isinstance(questions, str) else None,
        timed={
            key: part[key]
            for part, keys in ((settings, TIMED_WITH), (environment, TIMED_ON))
            for key in keys
            if key in part
        },
    )


def _recorded(files: RunFiles) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and environment."""
    try:
        run = json.loads(files.run.read_text(encoding="utf-8-sig"))
        settings, environment = run["settings"], run.get("environment")
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{files.run}: not the settings of a run ({error!r}); going by the file name", file=sys.stderr)
        return {}, {}
    return settings if isinstance(settings, dict) else {}, environment if isinstance(environment, dict) else {}


def _method(settings: dict[str, Any]) -> str | None:
    if "drafting" not in settings:
        return None
    drafting = settings["drafting"]
    if drafting is None:
        return BASELINE
    if not isinstance(drafting, dict) or not {"tree", "verifier"} <= drafting.keys():
        return None
    tree, verifier = str(drafting["tree"]), str(drafting["verifier"])
    if "drafter" in drafting:
        return f"ea_{drafting['drafter']}_{tree}_{verifier}"
    return USUAL.get((tree, verifier), f"ea_{tree}_{verifier}")


def _number(settings: dict[str, Any], name: str, otherwise: float | None) -> float | None:
    value = settings.get(name)
    return float(value) if isinstance(value, int | float) else otherwise


def labels(runs: Sequence[tuple[RunFiles, About]]) -> list[str]:
    """A short name for each run: its method, and of model, temperature, top_p and folder what differs.

    Returns:
        As many different labels as there are runs.
    """
    if len(runs) == 1:
        return [runs[0][1].method_label]
    parts = [[run.method_label] for _, run in runs]
    for values, shown in (
        ([run.temperature for _, run in runs], "T={}"),
        ([run.top_p for _, run in runs], "top_p={}"),
        ([run.model for _, run in runs], "{}"),
    ):
        if len(set(values)) > 1:
            for part, value in zip(parts, values, strict=True):
                part.append(shown.format("?" if value is None else value))
    # A file whose name has another form is its model and its method at once.
    names = [" ".join(dict.fromkeys(part)) for part in parts]
    folders = [files.answers.parent.name for files, _ in runs]
    paths = [str(files.answers) for files, _ in runs]
    for distinguishing in (folders, paths):
        count = Counter(names)
        names = [
            f"{name} ({place})" if count[name] > 1 else name for name, place in zip(names, distinguishing, strict=True)
        ]
    return names
