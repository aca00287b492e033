"""Several methods at several samplings, with one model load: ``python -m eagle.evaluation.sweep``.

    python -m eagle.evaluation.sweep --temperature 0 0.7 1.0 --top_p 1.0 0.9 --method baseline eagle3 hsd

Writes what the answering programs write, one run for each method, temperature and top_p, so that either goes on where
the other stopped.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from eagle import assets
from eagle.decoding.method import EAGLE3, HSD, PICKING, VERIFIERS, Method
from eagle.errors import InputError
from eagle.evaluation.answering.arguments import add_hybrid_arguments, answering_parser, hybrid_arguments
from eagle.evaluation.answering.bench import question_file
from eagle.evaluation.answering.cells import Cell, cell_of
from eagle.evaluation.answering.cli import INTERRUPTED, answer_cells
from eagle.evaluation.stats import stats
from eagle.program import run_program
from eagle.tree.shape import CHAIN, HYBRID, PATHS, TREES
from eagle.tree.warping import Warper

BASELINE = "baseline"


def parser() -> argparse.ArgumentParser:
    """The arguments of the program."""
    parse = answering_parser(
        "Answer benchmark questions with several methods at several samplings. The pair is loaded once; each question "
        "is answered in all cells of the grid before the next, so that methods are timed side by side; the same "
        "command resumes. Ends with the statistics."
    )
    grid = parse.add_argument_group("grid")
    grid.add_argument(
        "--method",
        nargs="+",
        default=[BASELINE, EAGLE3, HSD],
        help=f"{BASELINE} (autoregressive), {EAGLE3}, {HSD}, or a tree and a rule, as chain:blockwise "
        f"(trees: {', '.join(TREES)}; rules: {', '.join(VERIFIERS)}); of the draft model: draft/chain:blockwise",
    )
    grid.add_argument("--temperature", type=float, nargs="+", default=[1.0], help="0 is greedy")
    grid.add_argument(
        "--top_p", "--top-p", type=float, nargs="+", default=[1.0], help="nucleus mass; 0 and 1 are off; not at 0"
    )
    add_hybrid_arguments(grid)
    after = parse.add_argument_group("after the answers")
    after.add_argument("--plot", type=Path, metavar="DIR", help="put the pictures there")
    after.add_argument("--html", type=Path, metavar="FILE", help="write the report there")
    return parse


def grid(args: argparse.Namespace) -> list[Cell]:
    """The cells of the grid, no two with the same files.

    At temperature 0 top_p changes nothing, so there is one cell for all of them, with top_p off.

    Raises:
        InputError: an unknown method, a number out of its range, or sampled children asked for and no method has them.
    """
    methods = [None if name == BASELINE else Method.parse(name) for name in args.method]
    sampled = hybrid_arguments(args)
    if sampled and not any(method is not None and method.tree == HYBRID for method in methods):
        raise InputError(f"--{next(iter(sampled)).replace('_', '-')} is for hybrid trees (--method {HSD})")
    if 0.0 in args.temperature and any(0.0 < top_p < 1.0 for top_p in args.top_p):
        assets.say("temperature 0 is greedy and top_p changes nothing there: answered once, with top_p off")
    # What is for some of the methods goes to these; what is for none of them is refused.
    ranked = [method for method in methods if method is not None and method.tree not in (CHAIN, PATHS)]
    takes = {"least": ranked, "least_expanded": [method for method in ranked if method.drafter not in PICKING]}
    cells: dict[Path, Cell] = {}
    for temperature, top_p, method in itertools.product(args.temperature, args.top_p, methods):
        Warper(temperature, top_p)
        own = sampled if method is not None and method.tree == HYBRID else {}
        not_its = {name: None for name, those in takes.items() if those and method not in those}
        of_cell = argparse.Namespace(**vars(args) | not_its)
        cell = cell_of(of_cell, method, temperature, top_p if temperature else 1.0, own)
        cells.setdefault(cell.files.answers, cell)
    return list(cells.values())


def sweep(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser().parse_args(argv)
    cells = grid(args)
    count = answer_cells(cells, args)
    assets.say(f"{cells[0].files.answers.parent}: {len(cells)} runs of {count} questions")
    show = ["--question-file", str(question_file(args))]
    for name in ("plot", "html"):
        if getattr(args, name) is not None:
            show += [f"--{name}", str(getattr(args, name))]
    stats([*(str(cell.files.answers) for cell in cells), *show])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(sweep, argv, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
