"""Figures as tables for people: aligned text, Markdown; the cells are the same in both and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eagle.evaluation.reading.summary import Compared, Estimate, Summary

NOTHING = "-"
INTERVALS = "In brackets: 95 % intervals, bootstrap over questions."
# Of figures: the name in a table's head, and the decimals that they are shown with.
HEADS = {
    "accepted_per_round": ("accepted/round", 3),
    "tau": ("tau", 3),
    "tokens_per_second": ("tokens/s", 2),
    "accepted_tokens_per_second": ("accepted tokens/s", 2),
    "full_acceptance": ("fully accepted", 3),
}


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        head: names of the columns; the first holds names, the others figures.
        rows: cells, as many as in the head.
        notes: lines below it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Aligned, without the notes."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
        )

    def markdown(self) -> str:
        """A Markdown table, without the notes."""
        ruler = ["---", *("---:" for _ in self.head[1:])]
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.head, ruler, *self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, decimals: int) -> str:
    """A figure, or a dash where there is none."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def estimate(figure: Estimate | None, decimals: int, unit: str = "") -> str:
    """A figure with its interval, if it has one: ``1.234 (1.200 to 1.260)``."""
    if figure is None:
        return NOTHING
    value = f"{figure.value:.{decimals}f}{unit}"
    if math.isnan(figure.low):
        return value
    return f"{value} ({figure.low:.{decimals}f} to {figure.high:.{decimals}f})"


def _value(figure: Estimate | None, decimals: int) -> str:
    return number(None if figure is None else figure.value, decimals)


def summary_table(title: str, summaries: Mapping[str, Summary], first: str = "run") -> Table:
    """A row of figures for each run, or each category.

    Args:
        title: above the table.
        summaries: by the name in the row.
        first: what those names are of.
    """
    timed = any(summary.new_tokens is not None for summary in summaries.values())
    faster = any(summary.speed_up is not None for summary in summaries.values())
    head = [first, "questions", "rounds"]
    if timed:
        head += ["new tokens", "tokens/s", "accepted tokens/s"]
    if faster:
        head += ["speed-up"]
    rows = []
    for name, summary in summaries.items():
        figures = summary.figures
        row = [name, str(summary.questions), str(summary.rounds)]
        if timed:
            row += [
                NOTHING if summary.new_tokens is None else str(summary.new_tokens),
                estimate(figures["tokens_per_second"], 2),
                _value(figures["accepted_tokens_per_second"], 2),
            ]
        if faster:
            row += [estimate(summary.speed_up, 2, "x")]
        rows.append([*row, estimate(figures["accepted_per_round"], 3), _value(figures["tau"], 3)])
    partial = {
        name: summary
        for name, summary in summaries.items()
        if summary.speed_up is not None and summary.speed_up_questions < summary.questions
    }
    notes = [
        f"{name}: speed-up over {summary.speed_up_questions} of {summary.questions} questions, those that the "
        "baseline has too."
        for name, summary in partial.items()
    ]
    return Table(title, [*head, "accepted/round", "tau"], rows, notes)


def depth_table(summaries: Mapping[str, Summary]) -> Table:
    """For each run the share of rounds that accepted d tokens or more, where the tree was deep enough."""
    drafting = {name: summary for name, summary in summaries.items() if summary.depths}
    deepest = max((len(summary.depths) for summary in drafting.values()), default=0)
    rows = []
    for name, summary in drafting.items():
        depths = [_value(depth, 3) for depth in summary.depths]
        rows.append(
            [name, *depths, *[NOTHING] * (deepest - len(depths)), estimate(summary.figures["full_acceptance"], 3)]
        )
    return Table(
        "Acceptance by depth",
        ["run", *(str(depth) for depth in range(1, deepest + 1)), "all of the path"],
        rows,
        [
            "Share of rounds that accepted so many draft tokens or more, of those whose tree was so deep; last, that "
            "accepted all of the longest path's."
        ],
    )


def time_table(summaries: Mapping[str, Summary]) -> Table:
    """For each run the parts of the generations' time."""
    timed = {name: summary for name, summary in summaries.items() if summary.phases}
    order = ("prefill", "prefill, first draft", "draft", "target", "verify", "commit", "commit, draft", "other")
    phases = [phase for phase in order if any(phase in summary.phases for summary in timed.values())]
    rows = []
    for name, summary in timed.items():
        shares = summary.shares
        rows.append(
            [
                name,
                *(f"{shares[phase]:.1%}" if phase in shares else NOTHING for phase in phases),
                number(sum(summary.phases.values()), 1),
            ]
        )
    notes = []
    if any("commit, draft" in summary.phases for summary in timed.values()):
        notes.append("Where drafting was not timed by itself it is shown together with prefill and with commit.")
    return Table("Where the time goes", ["run", *phases, "seconds"], rows, notes)


def comparison_table(names: tuple[str, str], questions: int, compared: Mapping[str, Compared]) -> Table:
    """Two runs side by side.

    Args:
        names: of the first and the second run.
        questions: that both have.
        compared: their figures on those.
    """
    rows = []
    for name, figure in compared.items():
        head, decimals = HEADS[name]
        rows.append(
            [
                head,
                number(figure.first, decimals),
                number(figure.second, decimals),
                estimate(figure.difference, decimals),
                estimate(figure.ratio, 3, "x"),
            ]
        )
    noun = "question" if questions == 1 else "questions"
    return Table(
        f"{names[1]} over {names[0]}, {questions} {noun} of both",
        ["figure", names[0], names[1], "difference", "ratio"],
        rows,
        ["Intervals are of paired draws: both runs on the same questions each time."],
    )
