"""Runs whose answers were compared with references: how many are right beside what drafting gained, and differences."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from eagle.errors import InputError
from eagle.evaluation.answering.records import some_of
from eagle.evaluation.reading.pairing import note_other_machine, require_same_questions
from eagle.evaluation.reading.report import Member
from eagle.evaluation.reading.runs import only_rounds
from eagle.evaluation.reading.summary import Estimate, Figures, Summary, Sums, compare, in_common, summarise
from eagle.evaluation.reading.tables import Table, estimate

# Of the normal distribution, for an interval of 95 %.
Z = 1.959963984540054
# Sums over and under the line, see ``summary.FIGURES``. With --gamma only BE is of some rounds: an answer is right, and
# took its time, as a whole.
FIGURES: Figures = {
    "acc": ("right", "graded"),
    "be": ("kept accepted", "kept rounds"),
    "be_with_own": ("kept accepted and own", "kept rounds"),
    "ds_accepted": ("accepted", "seconds"),
    "ds": ("new tokens", "seconds"),
}


@dataclass(frozen=True)
class Accuracy:
    """How many answers of a run are right.

    Attributes:
        questions: answered.
        share: of right answers; of a question with several, their mean.
        without_number: answers that hold no number at all, which are wrong.
        by_question: the share of right answers to each question, by id.
    """

    questions: int
    share: float
    without_number: int
    by_question: Mapping[int | str, float] = field(default_factory=dict)

    @property
    def estimate(self) -> Estimate:
        """The share with its interval (Wilson 1927) over questions.

        Several answers to a question count as one, which makes it rather too wide than too narrow.
        """
        n, p = self.questions, self.share
        centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Graded:
    """A run with its answers compared.

    Attributes:
        member: the run.
        accuracy: of its answers.
        sums: of the questions compared, with the columns of ``FIGURES``.
        summary: the figures of ``FIGURES``.
        kept: rounds that BE is of.
        rounds: all there are.
    """

    member: Member
    accuracy: Accuracy
    sums: Sums
    summary: Summary
    kept: int
    rounds: int

    @classmethod
    def of(cls, member: Member, accuracy: Accuracy, gamma: int | None = None) -> Graded:
        """Put the accuracy of a run beside its other sums.

        Args:
            member: the run.
            accuracy: of its answers.
            gamma: BE is of the rounds of this draft length alone, the root included; of an autoregressive run there
                are none. None is all rounds.

        Raises:
            InputError: see ``only_rounds``.
        """
        rows = [row for row, question in enumerate(member.sums.questions) if question in accuracy.by_question]
        sums = member.sums.take(rows)
        if gamma is None:
            kept = sums.columns
        elif member.run.about.is_baseline:
            kept = {name: np.zeros(len(rows)) for name in sums.columns}
        else:
            kept = Sums.of(only_rounds(member.run, gamma)).take(rows).columns
        columns = {
            **sums.columns,
            **{f"kept {name}": kept[name] for name in ("rounds", "accepted", "accepted and own")},
            "right": np.array([accuracy.by_question[question] for question in sums.questions]),
            "graded": np.ones(len(rows)),
        }
        sums = replace(sums, columns=columns)
        summary = summarise(sums, figures=FIGURES)
        return cls(member, accuracy, sums, summary, int(sums.total("kept rounds")), summary.rounds)


def table(runs: Sequence[Graded], gamma: int | None = None) -> Table:
    """A row for each run: is it right, how much was accepted a round, how fast was it.

    Args:
        runs: to show.
        gamma: what they were made with, see ``Graded.of``.
    """
    rows = []
    for run in runs:
        figures = run.summary.figures
        rows.append(
            [
                run.member.label,
                str(run.accuracy.questions),
                estimate(_times_100(run.accuracy.estimate), 1),
                str(run.accuracy.without_number),
                estimate(figures["be_with_own"], 3),
                estimate(figures["be"], 3),
                estimate(figures["ds_accepted"], 2),
                estimate(figures["ds"], 2),
            ]
        )
    said = [
        "ACC: the last number of the answer is that of the reference. In brackets: 95 % intervals over questions, "
        "Wilson's of ACC, bootstrap of the others."
    ]
    if gamma is not None:
        kept = "; ".join(f"{run.member.label} {run.kept} of {run.rounds}" for run in runs)
        said.append(
            f"BE: only rounds of draft length {gamma}, the root and {gamma - 1} draft tokens (rounds kept: {kept}); "
            "ACC and DS: whole answers."
        )
    left_out = [
        f"{run.member.label} {len(run.member.run.unanswered)} ({some_of(run.member.run.unanswered)})"
        for run in runs
        if run.member.run.unanswered
    ]
    if left_out:
        said.append(f"Questions that could not be answered in full and are left out: {'; '.join(left_out)}.")
    return Table(
        "Accuracy",
        [
            *("run", "questions", "ACC, %", "no number", "BE, accepted + 1", "BE, accepted/round"),
            *("DS, accepted tokens/s", "DS, tokens/s"),
        ],
        rows,
        said,
    )


def differences(runs: Sequence[Graded], strict: bool) -> Table | None:
    """Each run less the first, on the questions that both have.

    Args:
        runs: to compare; the first is what the others are compared with.
        strict: whether a run that cannot be compared is an error; else it is named on standard error and left out.

    Returns:
        None where there is nothing to compare.

    Raises:
        InputError: a run of other questions, where ``strict``.
    """
    first, rows = runs[0], []
    for run in runs[1:]:
        try:
            require_same_questions(first.member.run, run.member.run)
            sums = in_common(first.sums, run.sums)
            if not sums[0].questions:
                files = (first.member.run.files.answers, run.member.run.files.answers)
                raise InputError(f"{files[0]} and {files[1]}: no question is in both, nothing to compare")
        except InputError as error:
            if strict:
                raise
            print(f"{error}; no difference is shown", file=sys.stderr)
            continue
        if run.member.baseline is not first.member.sums:
            # Else it was said when they were read.
            note_other_machine(first.member.run, run.member.run)
        found = {name: figure.difference for name, figure in compare(*sums, FIGURES).items()}
        rows.append(
            [
                run.member.label,
                str(len(sums[0].questions)),
                estimate(_times_100(found["acc"]), 1),
                estimate(found.get("be"), 3),
                estimate(found.get("ds_accepted"), 2),
                estimate(found.get("ds"), 2),
            ]
        )
    if not rows:
        return None
    return Table(
        f"Less {first.member.label}",
        ["run", "questions of both", "ACC, points", "BE", "DS, accepted tokens/s", "DS, tokens/s"],
        rows,
        [
            "In brackets: 95 % intervals, bootstrap of paired draws: both runs on the same questions each time. The "
            "difference in BE is the same with and without the target's own token."
        ],
    )


def _times_100(share: Estimate) -> Estimate:
    return Estimate(100 * share.value, 100 * share.low, 100 * share.high)
