"""Pictures of the laws of one draft length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eagle.simulation.trials import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(results: Sequence[Result], directory: Path) -> list[Path]:
    """Draw the laws of one draft length.

    Args:
        results: of the rules.
        directory: that exists.

    Returns:
        The files written: ``histogram.png`` and ``ccdf.png``.
    """
    # Only here: without plots nobody waits for it.
    from matplotlib.figure import Figure

    length = len(results[0].law) - 1
    written = []
    for name, draw_on in (("histogram", _histogram), ("ccdf", _ccdf)):
        figure = Figure(figsize=(10, 5.5), layout="constrained")
        axes = figure.subplots()
        draw_on(axes, results)
        trials = int(results[0].counts.sum())
        axes.set_title(f"One round, draft length {length}; dots: Monte Carlo, {trials} trials")
        axes.set_xticks(range(length + 1))
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.legend(title="rule (expected accepted length)")
        written.append(directory / f"{name}.png")
        # Of a figure that belongs to no window, savefig makes a PNG with Agg.
        figure.savefig(written[-1], dpi=150, format="png")
    return written


def _legend(result: Result) -> str:
    return f"{result.label}: {result.mean:.3f}"


def _histogram(axes: Axes, results: Sequence[Result]) -> None:
    """Bars side by side, with the trials' shares and their standard errors on them."""
    width = 0.85 / len(results)
    for place, result in enumerate(results):
        at = [n + (place - (len(results) - 1) / 2) * width for n in range(len(result.law))]
        trials = float(result.counts.sum())
        axes.bar(at, result.law.tolist(), width, label=_legend(result))
        axes.errorbar(
            at,
            (result.counts / trials).tolist(),
            (result.law * (1.0 - result.law) / trials).clamp(min=0.0).sqrt().tolist(),
            fmt="k.",
            markersize=4,
            elinewidth=0.8,
        )
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("accepted tokens n")
    axes.set_ylabel("P(accepted = n)")


def _ccdf(axes: Axes, results: Sequence[Result]) -> None:
    """Lines, of which some coincide: each is thinner than the one below it."""
    for place, result in enumerate(results):
        more_than = [(shares.sum() - shares.cumsum(0))[:-1] for shares in (result.law, result.counts)]
        at = list(range(len(more_than[0])))
        thickness = 1.2 + 0.8 * (len(results) - 1 - place)
        (line,) = axes.plot(at, more_than[0].tolist(), linewidth=thickness, label=_legend(result))
        axes.plot(
            at,
            (more_than[1] / result.counts.sum()).tolist(),
            "o",
            color=line.get_color(),
            markeredgecolor="black",
            markeredgewidth=0.6,
            markersize=5,
        )
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("n")
    axes.set_ylabel("P(accepted > n)")
