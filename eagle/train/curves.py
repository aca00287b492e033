"""Learning curves of a run: loss and overlap of each drafting step, in training and on held-out answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Of the training lines, which are one per optimizer step: the mean of so many is one point.
POINTS = 200


def draw_curves(metrics: list[dict[str, Any]], file: Path) -> None:
    """Plot the metrics of a run.

    Args:
        metrics: lines of its ``metrics.jsonl``.
        file: the picture, in a format that its suffix names.
    """
    # Takes a second to import, and draws without a screen.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    training = [line for line in metrics if line["kind"] == "train"]
    held_out = [line for line in metrics if line["kind"] == "held_out"]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    group = max(1, len(training) // POINTS)
    groups = [training[begin : begin + group] for begin in range(0, len(training), group)]
    for axis, name in zip(axes, ("loss", "overlap"), strict=True):
        for step in range(len(metrics[0][name])):
            colour = f"C{step % 10}"
            axis.plot(
                [some[-1]["tokens"] for some in groups],
                [sum(line[name][step] for line in some) / len(some) for some in groups],
                color=colour,
                alpha=0.3,
            )
            axis.plot(
                [line["tokens"] for line in held_out],
                [line[name][step] for line in held_out],
                color=colour,
                marker=".",
                label=f"step {step + 1}",
            )
        axis.set_xlabel("answer tokens")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend(title="held out (pale: training)")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
