"""Pictures of runs: accepted lengths, acceptance by depth and by temperature, where the time goes, tokens/s.

A method has the same colour in all of them; runs of one method differ in their lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import matplotlib
from matplotlib.figure import Figure

from eagle.evaluation.reading.naming import BASELINE
from eagle.evaluation.reading.report import Member
from eagle.evaluation.reading.summary import Estimate, accepted_at_least

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of axes and text. In the pictures of a page it is replaced with the page's own, which is light in the dark.
INK = "#434445"
COLOURS = {BASELINE: "#8a8d91", "ea": "#3f7fd1", "ea_hsd": "#e0702d"}
OTHERS = ("#2f9e76", "#9a5fc9", "#c94f7c", "#a88a1e", "#2a97a8", "#7a6a53")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
PHASES = {
    "prefill": "#9aa5b1",
    "prefill, first draft": "#9aa5b1",
    "draft": "#e8a13a",
    "target": "#4a78b8",
    "verify": "#a05fb5",
    "commit": "#4aa37c",
    "commit, draft": "#84a048",
    "other": "#c9c5bd",
}
WIDTH = 6.4
# That fit side by side.
CHARACTERS = 74
DPI = 150


@dataclass(frozen=True)
class Style:
    """How a run is drawn."""

    colour: str
    line: str
    marker: str


def draw(members: Sequence[Member]) -> dict[str, Figure]:
    """Draw all pictures for which there is something to show.

    Args:
        members: the runs.

    Returns:
        Pictures by the names of their files: ``accepted``, ``depth``, ``accepted_by_temperature``, ``time``,
        ``speed_by_temperature``.
    """
    styles = _styles(members)
    drafting = [member for member in members if member.summary.depths]
    timed = [member for member in members if member.summary.phases]
    figures = {}
    if drafting:
        figures["accepted"] = _picture(lambda axes: _accepted(axes, drafting, styles), len(drafting))
        figures["depth"] = _picture(lambda axes: _depth(axes, drafting, styles), len(drafting))
        figures["accepted_by_temperature"] = _against_temperature(
            drafting, "accepted_per_round", "accepted draft tokens a round", styles
        )
    if timed:
        figures["time"] = _time(timed)
        figures["speed_by_temperature"] = _against_temperature(timed, "tokens_per_second", "new tokens/s", styles)
    return figures


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write pictures as PNG and SVG.

    Args:
        figures: by name.
        folder: made if it is not there.

    Returns:
        The files.

    Raises:
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            written.append(folder / f"{name}.{kind}")
            write(figure, written[-1], kind)
    return written


def write(figure: Figure, file: Path, kind: str, transparent: bool = False) -> None:
    """Write one picture; the same picture is the same file. Text in an SVG stays text.

    Args:
        figure: the picture.
        file: where to.
        kind: ``png`` or ``svg``.
        transparent: without a background.
    """
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": file.stem}):
        # Of a figure that belongs to no window, savefig makes a PNG with Agg.
        figure.savefig(file, format=kind, dpi=DPI, transparent=transparent, metadata=metadata)


def _styles(members: Sequence[Member]) -> dict[str, Style]:
    methods = list(dict.fromkeys(member.run.about.method for member in members))
    unusual = [method for method in methods if method not in COLOURS]
    colours = COLOURS | {method: OTHERS[place % len(OTHERS)] for place, method in enumerate(unusual)}
    seen = dict.fromkeys(methods, 0)
    styles = {}
    for member in members:
        method = member.run.about.method
        place = seen[method]
        seen[method] += 1
        styles[member.label] = Style(colours[method], LINES[place % len(LINES)], MARKERS[place % len(MARKERS)])
    return styles


def _picture(
    draw_on: Callable[[Axes], None], entries: int, height: float = 3.4, grid: Literal["x", "y"] = "y"
) -> Figure:
    """Axes in the ink's colour, and below them the legend, where it covers nothing.

    Args:
        draw_on: draws the data.
        entries: of the legend.
        height: inches, without the legend.
        grid: the axis with the figures.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    draw_on(axes)
    axes.grid(axis=grid, color=INK, alpha=0.18, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    if entries:
        longest = max(len(label) for label in axes.get_legend_handles_labels()[1])
        columns = min(entries, max(1, CHARACTERS // (longest + 7)))
        figure.set_figheight(height + 0.24 * math.ceil(entries / columns))
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK)
    return figure


def _shown(label: str) -> str:
    """A label as itself: matplotlib hides those that begin with an underscore, and sets dollars as mathematics."""
    return (" " if label.startswith("_") else "") + label.replace("$", r"\$")


def _height(members: Sequence[Member]) -> float:
    """Inches of a picture with a bar for each run."""
    return 1.1 + 0.42 * len(members)


def _accepted(axes: Axes, members: Sequence[Member], styles: dict[str, Style]) -> None:
    """The complementary distribution of the accepted length; its values from 1 on add up to the mean."""
    longest = 1
    for member in members:
        shares = accepted_at_least(member.run).tolist()
        longest = max(longest, len(shares) - 1)
        mean = member.summary.figures["accepted_per_round"]
        style = styles[member.label]
        axes.plot(
            range(len(shares)),
            shares,
            linestyle=style.line,
            marker=style.marker,
            markersize=5,
            color=style.colour,
            label=_shown(member.label if mean is None else f"{member.label}: {mean.value:.2f} a round"),
        )
    axes.set_xticks(range(0, longest + 1, math.ceil(longest / 12)))
    axes.set_ylim(0.0, 1.03)
    axes.set_xlabel("draft tokens n")
    axes.set_ylabel("share of rounds that accept n or more")


def _depth(axes: Axes, members: Sequence[Member], styles: dict[str, Style]) -> None:
    deepest = 1
    for member in members:
        known = [(depth, figure) for depth, figure in enumerate(member.summary.depths, start=1) if figure is not None]
        deepest = max(deepest, len(member.summary.depths))
        style = styles[member.label]
        depths = [depth for depth, _ in known]
        axes.plot(
            depths,
            [figure.value for _, figure in known],
            linestyle=style.line,
            marker=style.marker,
            markersize=5,
            color=style.colour,
            label=_shown(member.label),
        )
        axes.fill_between(
            depths,
            [figure.value if math.isnan(figure.low) else figure.low for _, figure in known],
            [figure.value if math.isnan(figure.high) else figure.high for _, figure in known],
            color=style.colour,
            alpha=0.13,
            linewidth=0,
        )
    axes.set_xticks(range(1, deepest + 1, math.ceil(deepest / 12)))
    axes.set_ylim(0.0, 1.03)
    axes.set_xlabel("depth d")
    axes.set_ylabel("share accepted, of trees so deep")


def _against_temperature(members: Sequence[Member], name: str, what: str, styles: dict[str, Style]) -> Figure:
    """Lines over temperature; bars where all runs have the same one."""
    if len({member.run.about.temperature for member in members} - {None}) < 2:
        return _picture(lambda axes: _bars(axes, members, name, what, styles), 0, height=_height(members), grid="x")
    series: dict[tuple[str, float, str, Path], list[Member]] = {}
    for member in members:
        if member.run.about.temperature is not None:
            series.setdefault((member.run.about.method, *_variant(member)), []).append(member)
    for (method, _, model, folder), of_series in series.items():
        # At temperature 0 top_p changes nothing: what was answered there with top_p off belongs to every line.
        if all(member.run.about.temperature for member in of_series):
            off = series.get((method, -1.0, model, folder), [])
            of_series += [member for member in off if member.run.about.temperature == 0.0]
    return _picture(lambda axes: _lines(axes, list(series.values()), name, what, styles), len(series))


def _variant(member: Member) -> tuple[float, str, Path]:
    """What tells the runs of one method and temperature apart; those without top_p come first."""
    return -member.run.about.top_p, member.run.about.model, member.run.files.answers.parent


def _bars(axes: Axes, members: Sequence[Member], name: str, what: str, styles: dict[str, Style]) -> None:
    for place, member in enumerate(members):
        figure = member.summary.figures[name]
        if figure is not None:
            below, above = _reach(figure)
            axes.barh(
                place,
                figure.value,
                xerr=[[below], [above]],
                height=0.62,
                color=styles[member.label].colour,
                ecolor=INK,
                capsize=3,
            )
    axes.set_yticks(range(len(members)), [_shown(member.label) for member in members])
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.set_xlabel(what)


def _lines(axes: Axes, series: Sequence[Sequence[Member]], name: str, what: str, styles: dict[str, Style]) -> None:
    temperatures = sorted({member.run.about.temperature or 0.0 for members in series for member in members})
    closest = min(later - earlier for earlier, later in pairwise(temperatures))
    names = _series_names(series)
    variants = sorted({_variant(members[0]) for members in series})
    for place, (members, label) in enumerate(zip(series, names, strict=True)):
        figures = {member.run.about.temperature or 0.0: member.summary.figures[name] for member in members}
        known = [(at, figure) for at, figure in sorted(figures.items()) if figure is not None]
        # A little to the side, so that the intervals of one temperature do not cover one another.
        aside = (place - (len(series) - 1) / 2) * min(0.02, closest / (3 * len(series)))
        reaches = [_reach(figure) for _, figure in known]
        style = styles[members[0].label]
        axes.errorbar(
            [at + aside for at, _ in known],
            [figure.value for _, figure in known],
            yerr=[[below for below, _ in reaches], [above for _, above in reaches]],
            linestyle=LINES[variants.index(_variant(members[0])) % len(LINES)],
            marker=style.marker,
            markersize=5,
            color=style.colour,
            capsize=3,
            label=_shown(label),
        )
    axes.set_xticks(temperatures, [f"{temperature:g}" for temperature in temperatures])
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("temperature")
    axes.set_ylabel(what)


def _series_names(series: Sequence[Sequence[Member]]) -> list[str]:
    """The method, and what else tells series apart."""
    runs = [members[0].run for members in series]
    names = [run.about.method_label for run in runs]
    for shown in (
        [run.about.model for run in runs],
        [f"top_p={run.about.top_p}" for run in runs],
        [run.files.answers.parent.name for run in runs],
    ):
        if len(set(names)) < len(names) and len(set(shown)) > 1:
            names = [f"{name} {part}" for name, part in zip(names, shown, strict=True)]
    return names


def _reach(figure: Estimate) -> tuple[float, float]:
    """How far its interval goes below and above a figure."""
    if math.isnan(figure.low):
        return 0.0, 0.0
    return max(0.0, figure.value - figure.low), max(0.0, figure.high - figure.value)


def _time(members: Sequence[Member]) -> Figure:
    """Milliseconds of a new token, stacked: the shorter the bar, the faster the run."""
    phases = [phase for phase in PHASES if any(phase in member.summary.phases for member in members)]

    def bars(axes: Axes) -> None:
        ends = [0.0] * len(members)
        for phase in phases:
            widths = [
                1e3 * member.summary.phases.get(phase, 0.0) / max(member.summary.new_tokens or 0, 1)
                for member in members
            ]
            axes.barh(range(len(members)), widths, left=ends, height=0.62, color=PHASES[phase], label=phase)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        axes.set_yticks(range(len(members)), [_shown(member.label) for member in members])
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds a new token")

    return _picture(bars, len(phases), height=_height(members), grid="x")
