"""Accepted lengths of the verification rules on one chain of independent tokens: ``python -m eagle.simulation``.

Target and draft give each token the same law whatever came before it; by default they are the toy of the block
verification paper (Sun et al. 2024, arXiv 2403.10444). Such a chain separates the rules as far as anything does, and
all that a rule can know of a drafted prefix x_1 .. x_k is its joint ratio r = p(x_1 .. x_k) / q(x_1 .. x_k), of which
there are few. So the law of the accepted length is computed exactly, up to lengths whose drafts nobody can enumerate,
straight from the rules' definitions; and the same chains are drafted and verified with the package's own rules. Each
checks the other.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eagle.errors import InputError
from eagle.program import run_program
from eagle.simulation.laws import Pair
from eagle.simulation.pictures import plot
from eagle.simulation.trials import SUSPICIOUS, Result, results_of
from eagle.verification.cases import TOY_DRAFT, TOY_TARGET

DEFAULT_PLOT_LENGTH = 10


def table(results: Sequence[Sequence[Result]]) -> str:
    """Lines of an aligned table: a row for each draft length from 1 on, a column for each rule."""
    rows = [["draft length", *(result.label for result in results[0])]]
    for length, row in enumerate(results, start=1):
        cells = (f"{cell.mean:.4f} ({cell.sampled_mean:.3f}±{cell.standard_error:.3f})" for cell in row)
        rows.append([str(length), *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def disagreements(results: Sequence[Sequence[Result]]) -> str:
    """A line that says whether exact and Monte-Carlo means agree, and one for each that does not."""
    lines = [
        f"{result.rule.name} at draft length {length}: {result.mean:.4f} exactly, "
        f"{result.sampled_mean:.4f}±{result.standard_error:.4f} by Monte Carlo"
        for length, row in enumerate(results, start=1)
        for result in row
        if result.disagrees
    ]
    found = (
        f"exact and Monte-Carlo means that differ by more than {SUSPICIOUS:g} standard errors: {len(lines) or 'none'}"
    )
    if lines:
        by_chance = sum(map(len, results)) * math.erfc(SUSPICIOUS / math.sqrt(2))
        lines.append(f"(by chance, about {by_chance:.2g} of them a run are to be expected: more --trials decide)")
    return "\n".join([found, *lines])


NOTES = """\
lossy: what hsd_published emits does not have the target's law, so its figures are no measure of a verification rule.
naive_hsd: its figures are of one round. It pays for them in the tokens that follow, whose target it changes.\
"""


def _parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        description="Accepted lengths of verification rules on one chain of independent tokens, exact and sampled.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parse.add_argument("--target", type=float, nargs="+", default=TOY_TARGET, help="the target's law of every token")
    parse.add_argument("--draft", type=float, nargs="+", default=TOY_DRAFT, help="the draft's law of every token")
    parse.add_argument("--max-length", type=int, default=20, help="draft lengths 1 to this")
    parse.add_argument("--trials", type=int, default=1000, help="chains for each draft length and rule")
    parse.add_argument("--seed", type=int, default=0, help="of the trials")
    parse.add_argument(
        "--plot-length",
        type=int,
        help=f"draft length of the plots; None: {DEFAULT_PLOT_LENGTH}, or --max-length if that is less",
    )
    parse.add_argument("--out", type=Path, default=Path("simulation"), help="directory of the plots")
    parse.add_argument("--no-plots", action="store_true", help="only the table")
    return parse


@contextmanager
def _writing_to(directory: Path) -> Iterator[None]:
    """Turn a failure to write into the user's error."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--out {directory}: cannot write there ({error.strerror})") from error


def simulate(argv: Sequence[str] | None) -> None:
    """The whole program: compute, sample, print the table, write the plots.

    Raises:
        InputError: anything the user can put right.
    """
    args = _parser().parse_args(argv)
    for name in ("max_length", "trials"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed must be 0 or more and below 2^63, not {args.seed}")
    plot_length = min(DEFAULT_PLOT_LENGTH, args.max_length) if args.plot_length is None else args.plot_length
    if not 1 <= plot_length <= args.max_length:
        raise InputError(f"--plot-length must be 1 to {args.max_length} (--max-length), not {plot_length}")
    pair = Pair.of(args.target, args.draft)
    if not args.no_plots:
        # Before the work, not after it.
        with _writing_to(args.out):
            args.out.mkdir(parents=True, exist_ok=True)
    results = results_of(pair, args.max_length, args.trials, args.seed)
    for name, law in (("target", pair.target), ("draft", pair.draft)):
        print(f"{name}: {' '.join(f'{p:.4g}' for p in law.tolist())}")
    print(f"expected accepted length: exact (Monte-Carlo mean±standard error, {args.trials} trials)\n")
    print(f"{table(results)}\n")
    print(f"{disagreements(results)}\n{NOTES}")
    if not args.no_plots:
        with _writing_to(args.out):
            written = plot(results[plot_length - 1], args.out)
        for file in written:
            print(f"written: {file}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(simulate, argv)


if __name__ == "__main__":
    sys.exit(main())
