"""The figures of a run, with intervals over its questions.

Every figure is a ratio of two sums over questions: accepted draft tokens over rounds, new tokens over seconds. Its 95 %
interval is the percentile bootstrap (Efron 1979) that draws questions, not rounds, since the rounds of one text are
alike. Two runs on the same questions are compared on the same draws of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eagle.evaluation.reading.lines import Floats, Ints
from eagle.evaluation.reading.runs import Run

RESAMPLES = 2000
SEED = 0
# Of the matrix of draws (resamples, questions), so many entries are in memory at a time.
CHUNK = 4_000_000
INTERVAL = (2.5, 97.5)

# A figure's sums, over and under the line. The published scripts count accepted draft tokens only, which leaves out the
# target's own token of every round; what a reader gets to see a second is new tokens.
FIGURES = {
    "accepted_per_round": ("accepted", "rounds"),
    "tau": ("accepted and own", "rounds"),
    "tokens_per_second": ("new tokens", "seconds"),
    "accepted_tokens_per_second": ("accepted", "seconds"),
    "full_acceptance": ("fully accepted", "drafted rounds"),
}
Figures = Mapping[str, tuple[str, str]]
"""Names of figures, each with the columns of ``Sums`` over and under its line."""
TIMED = ("tokens_per_second", "accepted_tokens_per_second")


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; its ends are NaN where no draw differs, as with a single question."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sums:
    """What figures are made of, by question.

    Attributes:
        questions: n ids.
        categories: n categories.
        columns: sums over a question, each (n,) float64, by what was summed.
        at_least: (n, D) float64, rounds that accepted at least 1, 2, ... D tokens.
        could: (n, D) float64, rounds whose tree was deep enough for that.
        phases: seconds of each part of the generation, each (n,) float64; empty where only some rounds were kept.
    """

    questions: tuple[int | str, ...]
    categories: tuple[str | None, ...]
    columns: Mapping[str, Floats]
    at_least: Floats
    could: Floats
    phases: Mapping[str, Floats]

    @classmethod
    def of(cls, run: Run) -> Sums:
        """Sum a run up."""
        drafted = run.draft_length > 1
        accepted, rounds = run.per_question(run.accept_length), np.diff(run.offsets)
        columns: dict[str, Ints | Floats] = {
            "rounds": rounds,
            "accepted": accepted,
            "accepted and own": accepted + rounds,
            "drafted rounds": run.per_question(drafted.astype(np.int64)),
            "fully accepted": run.per_question(
                (drafted & (run.accept_length == run.draft_length - 1)).astype(np.int64)
            ),
        }
        if run.gamma is None:
            # What a turn took and emitted cannot be split by its rounds.
            columns |= {"new tokens": run.new_tokens, "seconds": run.generate_time}
        depth = int(run.draft_length.max(initial=1)) - 1
        return cls(
            questions=run.questions,
            categories=run.categories,
            columns={name: column.astype(np.float64) for name, column in columns.items()},
            at_least=_rounds_of_at_least(run, run.accept_length, depth),
            could=_rounds_of_at_least(run, run.draft_length - 1, depth),
            phases=_phases(run) if run.gamma is None else {},
        )

    def take(self, rows: Sequence[int]) -> Sums:
        """Some of the questions, by their places."""
        at = np.asarray(rows, np.int64)
        return Sums(
            questions=tuple(self.questions[row] for row in rows),
            categories=tuple(self.categories[row] for row in rows),
            columns={name: column[at] for name, column in self.columns.items()},
            at_least=self.at_least[at],
            could=self.could[at],
            phases={name: column[at] for name, column in self.phases.items()},
        )

    def while_writing(self) -> Sums | None:
        """The same, with the seconds in which prompts were read left out; None where those are not known."""
        reading = next((seconds for name, seconds in self.phases.items() if name.startswith("prefill")), None)
        if reading is None:
            return None
        return replace(self, columns={**self.columns, "seconds": self.columns["seconds"] - reading})

    def by_category(self) -> dict[str, Sums]:
        """The questions of each category, in the order in which categories occur; those without one are left out."""
        rows: dict[str, list[int]] = {}
        for row, category in enumerate(self.categories):
            if category is not None:
                rows.setdefault(category, []).append(row)
        return {category: self.take(some) for category, some in rows.items()}

    def total(self, name: str) -> float:
        """The sum of a column over the questions."""
        return float(self.columns[name].sum())


def _rounds_of_at_least(run: Run, lengths: Ints, depth: int) -> Floats:
    """(n, depth) float64: of how many of a question's rounds is the length at least 1, 2, ..."""
    questions = len(run.questions)
    question = np.repeat(np.arange(questions), np.diff(run.offsets))
    counts = np.bincount(question * (depth + 1) + lengths, minlength=questions * (depth + 1))
    at_least = np.cumsum(counts.reshape(questions, depth + 1)[:, ::-1], axis=1)[:, ::-1]
    return at_least[:, 1:].astype(np.float64)


def _phases(run: Run) -> dict[str, Floats]:
    """Seconds of the parts of a generation; drafting is told apart from commit and prefill where it was recorded."""
    update, target = run.per_question(run.update_time), run.per_question(run.tree_time)
    verify = run.per_question(run.eval_time)
    if run.draft_time is None or run.first_draft_time is None:
        phases = {"prefill, first draft": run.reset_tree_time, "commit, draft": update}
    else:
        draft = run.per_question(run.draft_time)
        phases = {
            "prefill": run.reset_tree_time - run.first_draft_time,
            "draft": draft,
            "commit": update - (draft - run.first_draft_time),
        }
    phases |= {"target": target, "verify": verify}
    ordered = ("prefill", "prefill, first draft", "draft", "target", "verify", "commit", "commit, draft")
    parts = {name: phases[name].clip(min=0.0) for name in ordered if name in phases}
    rest = run.generate_time - np.sum(list(parts.values()), axis=0)
    return parts | {"other": rest.clip(min=0.0)}


# ---------------------------------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """The figures of a run, or of one category of it.

    Attributes:
        questions: how many.
        rounds: of verification.
        new_tokens: emitted; None where only some rounds were kept, as for what is timed.
        figures: by name, those of ``FIGURES`` if nothing else was asked for; None where there is nothing to divide by.
        speed_up: tokens/s over the baseline's, on the questions that both have; None without a baseline.
        speed_up_questions: how many those are.
        depths: for d = 1, 2, ... the share of rounds that accepted d tokens or more, of those with trees so deep.
        phases: seconds of the parts of the generations.
    """

    questions: int
    rounds: int
    new_tokens: int | None
    figures: Mapping[str, Estimate | None]
    speed_up: Estimate | None
    speed_up_questions: int
    depths: tuple[Estimate | None, ...]
    phases: Mapping[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """The phases as shares of their sum."""
        seconds = sum(self.phases.values())
        return {name: phase / seconds for name, phase in self.phases.items()} if seconds else {}


def summarise(sums: Sums, baseline: Sums | None = None, figures: Figures = FIGURES) -> Summary:
    """The figures of a run.

    Args:
        sums: of the run.
        baseline: of its baseline.
        figures: which.
    """
    speed_up, common = None, 0
    if baseline is not None and "seconds" in sums.columns:
        mine, theirs = in_common(sums, baseline)
        common = len(mine.questions)
        speed_up = compare(theirs, mine)["tokens_per_second"].ratio if common else None
    names, depth = list(sums.columns), sums.could.shape[1]
    table = np.concatenate([np.stack(list(sums.columns.values()), axis=1), sums.at_least, sums.could], axis=1)
    totals, drawn = table.sum(axis=0), resampled(table)

    def ratio(above: int, below: int) -> Estimate | None:
        if not totals[below]:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return _estimate(float(totals[above] / totals[below]), drawn[:, above] / drawn[:, below])

    return Summary(
        questions=len(sums.questions),
        rounds=int(sums.total("rounds")),
        new_tokens=int(sums.total("new tokens")) if "new tokens" in sums.columns else None,
        figures={
            name: ratio(names.index(above), names.index(below)) if {above, below} <= sums.columns.keys() else None
            for name, (above, below) in figures.items()
        },
        speed_up=speed_up,
        speed_up_questions=common,
        depths=tuple(ratio(len(names) + d, len(names) + depth + d) for d in range(depth)),
        phases={name: float(column.sum()) for name, column in sums.phases.items()},
    )


def accepted_at_least(run: Run) -> Floats:
    """(L + 1,) float64: the shares of rounds that accepted at least 0, 1, ... L draft tokens, L the most there was."""
    counts = np.bincount(run.accept_length)
    return np.cumsum(counts[::-1])[::-1] / max(len(run.accept_length), 1)


# ---------------------------------------------------------------------------------------------------------------------
# Two runs
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A figure of two runs on the same questions.

    Attributes:
        first: of the first run.
        second: of the second.
        difference: second less first.
        ratio: second over first; None where the first is 0.
    """

    first: float
    second: float
    difference: Estimate
    ratio: Estimate | None


def in_common(first: Sums, second: Sums) -> tuple[Sums, Sums]:
    """Both runs on the questions that both have, in the first one's order and by the first one's categories."""
    places = {question: row for row, question in enumerate(second.questions)}
    rows = [row for row, question in enumerate(first.questions) if question in places]
    mine, theirs = first.take(rows), second.take([places[first.questions[row]] for row in rows])
    return mine, replace(theirs, categories=mine.categories)


def compare(first: Sums, second: Sums, figures: Figures = FIGURES) -> dict[str, Compared]:
    """Figures of two runs side by side.

    Args:
        first: a run on some questions.
        second: another on the same ones, in the same order (see ``in_common``).
        figures: which.

    Returns:
        By name, those that both runs have.
    """
    names = [name for name in first.columns if name in second.columns]
    table = np.stack([sums.columns[name] for sums in (first, second) for name in names], axis=1)
    totals, drawn = (part.reshape(-1, 2, len(names)) for part in (table.sum(axis=0), resampled(table)))
    compared = {}
    for figure, ratio in figures.items():
        if not set(ratio) <= set(names):
            continue
        above, below = map(names.index, ratio)
        with np.errstate(divide="ignore", invalid="ignore"):
            (one, other), draws = (part[..., above] / part[..., below] for part in (totals[0], drawn))
            if np.isfinite(one) and np.isfinite(other):
                compared[figure] = Compared(
                    first=float(one),
                    second=float(other),
                    difference=_estimate(float(other - one), draws[:, 1] - draws[:, 0]),
                    ratio=_estimate(float(other / one), draws[:, 1] / draws[:, 0]) if one else None,
                )
    return compared


# ---------------------------------------------------------------------------------------------------------------------
# Bootstrap
# ---------------------------------------------------------------------------------------------------------------------


def resampled(columns: Floats) -> Floats:
    """Sums over questions drawn with replacement, as many as there are; the same draws for equally many questions.

    Args:
        columns: (n, k) values of n questions.

    Returns:
        (``RESAMPLES``, k) float64.
    """
    questions = len(columns)
    generator = np.random.default_rng(SEED)
    sums = []
    for begin in range(0, RESAMPLES, step := max(1, CHUNK // max(questions, 1))):
        size = min(step, RESAMPLES - begin)
        sums.append(generator.multinomial(questions, np.full(questions, 1 / questions), size=size) @ columns)
    return np.concatenate(sums)


def _estimate(value: float, draws: Floats) -> Estimate:
    """The interval between two percentiles of the draws."""
    finite = draws[np.isfinite(draws)]
    if len(finite) == 0 or (finite == value).all():
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(finite, INTERVAL)
    return Estimate(value, float(low), float(high))
