"""Speed-ups as Spec-Bench reckons them (Xia et al. 2024), by its six tasks and over all questions.

A question's tokens/s are its new tokens over its seconds; a task's are the mean over its questions, and the speed-up is
the ratio of two runs' means. The baseline's tokens are counted anew there, a turn's as the tokenizer sees its text,
less one. The mean accepted tokens are those that a round emits, over all rounds, the target's own included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eagle.evaluation.reading.summary import Sums
from eagle.evaluation.reading.tables import Table, number

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
ONE_TASK = "mt_bench"
OVERALL = "overall"
TASKS = (ONE_TASK, "translation", "summarization", "qa", "math_reasoning", "rag")


@dataclass(frozen=True)
class Speed:
    """How fast a run was on the questions of a task.

    Attributes:
        task: its name.
        questions: how many.
        tokens_per_second: mean over them; None where a question took no time.
        baseline: the same of the baseline.
        accepted: mean tokens a round emitted; None where the run does not tell its rounds.
    """

    task: str
    questions: int
    tokens_per_second: float | None
    baseline: float | None
    accepted: float | None

    @property
    def speed_up(self) -> float | None:
        """Ratio of the means."""
        return self.tokens_per_second / self.baseline if self.tokens_per_second and self.baseline else None


def task_of(category: str | None) -> str | None:
    """The task that a category belongs to where there are other tasks: MT-Bench's are one."""
    return ONE_TASK if category in MT_BENCH else category


def tasks(sums: Sums) -> Sums:
    """The same with the categories as Spec-Bench groups them: where there are other tasks, MT-Bench's are one."""
    if set(sums.categories) <= {*MT_BENCH, None}:
        return sums
    return replace(sums, categories=tuple(map(task_of, sums.categories)))


def mean_speed(sums: Sums) -> float | None:
    """Tokens/s: the mean over questions of a question's tokens over its seconds; None without seconds."""
    tokens, seconds = sums.columns["new tokens"], sums.columns["seconds"]
    return float((tokens / seconds).mean()) if (seconds > 0).all() else None


def speeds(run: Sums, baseline: Sums) -> list[Speed]:
    """Of every task of a run, in Spec-Bench's order, and overall.

    Args:
        run: of a run.
        baseline: of the baseline, on the same questions in the same order, see ``summary.in_common``.
    """
    mine, theirs = tasks(run).by_category(), tasks(baseline).by_category()
    known = [task for task in TASKS if task in mine]
    order = [*known, *(category for category in mine if category not in known)]
    parts = [(category or "-", mine[category], theirs[category]) for category in order]
    return [_speed(*part) for part in [*parts, (OVERALL, run, baseline)]]


def _speed(task: str, run: Sums, baseline: Sums) -> Speed:
    emitted, rounds = run.columns.get("accepted and own"), run.columns["rounds"].sum()
    accepted = float(emitted.sum() / rounds) if emitted is not None and rounds else None
    return Speed(task, len(run.questions), mean_speed(run), mean_speed(baseline), accepted)


def recounted(baseline: Sums, texts: Mapping[int | str, Sequence[str]], count: Callable[[str], int]) -> Sums:
    """The baseline with its tokens counted anew.

    Args:
        baseline: as it was recorded.
        texts: of the turns of each question.
        count: tokens that the tokenizer sees in a text, those that it puts around it included.
    """
    tokens = [sum(count(turn) - 1 for turn in texts[question]) for question in baseline.questions]
    return replace(baseline, columns={**baseline.columns, "new tokens": np.array(tokens, np.float64)})


def speed_table(found: Sequence[Speed]) -> Table:
    """A row a task."""
    rows = [
        [
            each.task,
            str(each.questions),
            number(each.tokens_per_second, 2),
            number(each.baseline, 2),
            "-" if each.speed_up is None else f"{each.speed_up:.2f}x",
            number(each.accepted, 3),
        ]
        for each in found
    ]
    head = ["task", "questions", "tokens/s", "baseline tokens/s", "speed-up", "mean accepted"]
    return Table("Spec-Bench's arithmetic", head, rows)
