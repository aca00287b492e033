"""Runs read together: labelled, each beside its baseline, summed up, and shown as tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.errors import InputError
from eagle.evaluation.answering.records import some_of
from eagle.evaluation.reading.naming import labels
from eagle.evaluation.reading.pairing import note_other_machine, require_same_questions, same_questions
from eagle.evaluation.reading.runs import Run, find_run, only_rounds, read_runs
from eagle.evaluation.reading.summary import Compared, Estimate, Summary, Sums, compare, in_common, summarise
from eagle.evaluation.reading.tables import INTERVALS, Table, comparison_table, depth_table, summary_table, time_table


@dataclass(frozen=True)
class Member:
    """One run of a report.

    Attributes:
        label: short, and no other run's.
        run: as read.
        sums: of it.
        baseline: of the run that its speed is compared with; None without one.
        summary: its figures.
    """

    label: str
    run: Run
    sums: Sums
    baseline: Sums | None
    summary: Summary

    def by_category(self) -> dict[str, Summary]:
        """Its figures for each category."""
        baselines = in_common(self.sums, self.baseline)[1].by_category() if self.baseline else {}
        return {
            category: summarise(sums, baselines.get(category)) for category, sums in self.sums.by_category().items()
        }


@dataclass(frozen=True)
class Comparison:
    """Two runs on the questions that both have.

    Attributes:
        labels: of the first and the second.
        questions: how many.
        figures: of both, by the names of ``summary.FIGURES``.
    """

    labels: tuple[str, str]
    questions: int
    figures: Mapping[str, Compared]

    @classmethod
    def of(cls, first: Member, second: Member) -> Comparison:
        """Compare two runs.

        Raises:
            InputError: no question is in both, or they answer different files of questions.
        """
        require_same_questions(first.run, second.run)
        note_other_machine(first.run, second.run)
        sums = in_common(first.sums, second.sums)
        questions = len(sums[0].questions)
        if not questions:
            raise InputError(
                f"{first.run.files.answers} and {second.run.files.answers}: no question is in both, nothing to compare"
            )
        return cls((first.label, second.label), questions, compare(*sums))

    def table(self) -> Table:
        """As a table."""
        return comparison_table(self.labels, self.questions, self.figures)


def read_members(
    paths: Sequence[Path],
    baseline: Path | None = None,
    gamma: int | None = None,
    categories: Mapping[int | str, str | None] | None = None,
) -> list[Member]:
    """Read runs and sum them up.

    A run's baseline is the one given, or else an autoregressive run among them of the same questions, model,
    temperature and top_p, in the same folder if there is more than one.

    Args:
        paths: files or folders, see ``read_runs``.
        baseline: any file of the baseline of all runs, or a folder with nothing else; it comes first.
        gamma: keep only rounds of this draft length, and no autoregressive run.
        categories: of questions, where the runs do not tell.

    Raises:
        InputError: as ``read_runs``; only autoregressive runs with ``gamma``; a given baseline of other questions.
    """
    read = read_runs([*([find_run(baseline)] if baseline else []), *paths])
    runs = [run.with_categories(categories or {}) for run in read]
    if gamma is not None:
        runs = [only_rounds(run, gamma) for run in runs if not run.about.is_baseline]
        if not runs:
            raise InputError("--gamma: there are only autoregressive runs, which draft nothing")
    sums = [Sums.of(run) for run in runs]
    names = labels([(run.files, run.about) for run in runs])
    members = []
    for run, summed, name in zip(runs, sums, names, strict=True):
        if baseline:
            require_same_questions(runs[0], run)
        beside = runs[0] if baseline else _baseline_of(run, runs)
        if beside is not None:
            note_other_machine(run, beside)
        compared = None if beside is None else sums[runs.index(beside)]
        members.append(Member(name, run, summed, compared, summarise(summed, compared)))
    return members


def _baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    alike = [
        other
        for other in runs
        if other.about.is_baseline
        and same_questions(run, other)
        and (other.about.model, other.about.temperature, other.about.top_p)
        == (run.about.model, run.about.temperature, run.about.top_p)
    ]
    near = [other for other in alike if other.files.answers.parent == run.files.answers.parent]
    for candidates in (near, alike):
        if len(candidates) == 1:
            return candidates[0]
    if alike:
        print(f"{run.files.answers}: several baselines, so none is taken; --baseline names one", file=sys.stderr)
    return None


def summaries(members: Sequence[Member]) -> dict[str, Summary]:
    """The figures of all runs by label."""
    return {member.label: member.summary for member in members}


def tables(members: Sequence[Member], by: Sequence[str] = (), comparison: Comparison | None = None) -> list[Table]:
    """The tables of a report.

    Args:
        members: its runs.
        by: more than the summary: ``category``, ``depth``, ``time``.
        comparison: shown last.
    """
    shown = [summary_table(title(members), summaries(members))]
    if "category" in by:
        for member in members:
            if categories := member.by_category():
                shown.append(summary_table(f"{member.label} by category", categories, first="category"))
    if "depth" in by and any(member.summary.depths for member in members):
        shown.append(depth_table(summaries(members)))
    if "time" in by and any(member.summary.phases for member in members):
        shown.append(time_table(summaries(members)))
    if comparison is not None:
        shown.append(comparison.table())
    return shown


def title(members: Sequence[Member]) -> str:
    """What all runs have in common."""
    runs = [member.run.about for member in members]
    shared = []
    if len({run.model for run in runs}) == 1:
        shared.append(runs[0].model)
    if len({run.temperature for run in runs}) == 1 and runs[0].temperature is not None:
        shared.append(f"temperature {runs[0].temperature}")
    if len({run.top_p for run in runs}) == 1 and runs[0].top_p != 1.0:
        shared.append(f"top_p {runs[0].top_p}")
    return ", ".join(shared) or f"{len(runs)} runs"


def notes(members: Sequence[Member]) -> list[str]:
    """What a reader of the figures has to know."""
    said = [INTERVALS]
    gamma = members[0].run.gamma
    if gamma is not None:
        kept = "; ".join(f"{member.label} {member.summary.rounds} of {member.run.rounds_read}" for member in members)
        said.append(
            f"Only rounds of draft length {gamma} (rounds kept: {kept}). What a whole turn took cannot be split by its "
            "rounds, so there are no tokens/s."
        )
    skipped = sum(member.run.skipped for member in members)
    if skipped:
        said.append(f"Malformed lines that were skipped: {skipped}.")
    for what, of in (
        ("had a turn that could not be answered and are left out", [member.run.unanswered for member in members]),
        ("have several answers, of which the last is used", [member.run.doubled for member in members]),
    ):
        named = [
            f"{member.label} {len(questions)} ({some_of(questions)})"
            for member, questions in zip(members, of, strict=True)
            if questions
        ]
        if named:
            said.append(f"Questions that {what}: {'; '.join(named)}.")
    return said


# ---------------------------------------------------------------------------------------------------------------------
# As data
# ---------------------------------------------------------------------------------------------------------------------


def data(members: Sequence[Member], by: Sequence[str] = (), comparison: Comparison | None = None) -> dict[str, Any]:
    """Everything as what JSON holds: figures as ``value``, ``low``, ``high``; None where there is none."""
    runs = []
    for member in members:
        run = member.run
        described: dict[str, Any] = {
            "run": member.label,
            "file": str(run.files.answers),
            "model": run.about.model,
            "method": run.about.method,
            "temperature": run.about.temperature,
            "top_p": run.about.top_p,
            "gamma": run.gamma,
            "rounds_read": run.rounds_read,
            "skipped_lines": run.skipped,
            "unanswered": len(run.unanswered),
            "several_answers": len(run.doubled),
            **_summary_data(member.summary),
        }
        if "category" in by:
            described["categories"] = {name: _summary_data(summary) for name, summary in member.by_category().items()}
        runs.append(described)
    found: dict[str, Any] = {"runs": runs}
    if comparison is not None:
        found["comparison"] = {
            "first": comparison.labels[0],
            "second": comparison.labels[1],
            "questions": comparison.questions,
            "figures": {
                name: {
                    "first": figure.first,
                    "second": figure.second,
                    "difference": _estimate_data(figure.difference),
                    "ratio": _estimate_data(figure.ratio),
                }
                for name, figure in comparison.figures.items()
            },
        }
    return found


def rows(members: Sequence[Member], by: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One flat row per run, and with ``category`` one more per category, all with the same keys."""
    flat = []
    for described in data(members, by)["runs"]:
        categories = described.pop("categories", {})
        about_run = {key: described[key] for key in ("run", "file", "model", "method", "temperature", "top_p")}
        flat.append(_flat({"category": None, **described}))
        flat += [_flat({"category": name, **about_run, **figures}) for name, figures in categories.items()]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    return [{key: row.get(key) for key in keys} for row in flat]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys joined by underscores; the value of an estimate has its bare name."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = prefix.rstrip("_") if key == "value" else f"{prefix}{key.replace(', ', '_and_').replace(' ', '_')}"
        if isinstance(value, list):
            value = {str(place): item for place, item in enumerate(value, start=1)}
        flat |= _flat(value, f"{name}_") if isinstance(value, Mapping) else {name: value}
    return flat


def _summary_data(summary: Summary) -> dict[str, Any]:
    return {
        "questions": summary.questions,
        "rounds": summary.rounds,
        "new_tokens": summary.new_tokens,
        **{name: _estimate_data(figure) for name, figure in summary.figures.items()},
        "speed_up": _estimate_data(summary.speed_up),
        "speed_up_questions": summary.speed_up_questions,
        "acceptance_at_depth": [_estimate_data(depth) for depth in summary.depths],
        "time_share": summary.shares,
    }


def _estimate_data(figure: Estimate | None) -> dict[str, float | None]:
    if figure is None:
        return {"value": None, "low": None, "high": None}
    return {
        key: None if math.isnan(value) else value
        for key, value in (("value", figure.value), ("low", figure.low), ("high", figure.high))
    }
