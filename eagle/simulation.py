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
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from eagle.errors import InputError
from eagle.model.sampling import draw_rows, uniforms
from eagle.model.tree import DraftTree, Laws
from eagle.program import run_program
from eagle.verification import RULES, Rule
from eagle.verification.exact import TOY_DRAFT, TOY_TARGET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_PLOT_LENGTH = 10
MOST_RATIOS = 300_000
SUM_TOLERANCE = 1e-6
SUSPICIOUS = 4.0

# Logarithms of ratios are kept to this many decimals, so that products of the same factors in another order are one.
DECIMALS = 12
# Beyond this e^x overflows; a prefix whose joint ratio is at least e^x is drafted with probability e^-x at most.
LARGEST_LOG = 700.0
CAPPED, UNCAPPED = 0.0, math.inf


@dataclass(frozen=True)
class Pair:
    """A target and a draft that give every position the same law.

    Attributes:
        target: (V,) float64 probabilities, of sum 1.
        draft: (V,) float64 probabilities, of sum 1.
    """

    target: Tensor
    draft: Tensor

    @classmethod
    def of(cls, target: Sequence[float], draft: Sequence[float]) -> Pair:
        """Check and normalise what a user gave.

        Raises:
            InputError: different lengths, fewer than two tokens, or entries that are no probabilities.
        """
        if len(target) != len(draft):
            raise InputError(f"--target has {len(target)} probabilities and --draft {len(draft)}; give as many to both")
        return cls(_law("--target", target), _law("--draft", draft))


def _law(option: str, probabilities: Sequence[float]) -> Tensor:
    """(V,) float64 probabilities of sum 1, if that is what they are meant to be."""
    if len(probabilities) < 2:
        raise InputError(f"{option} needs at least 2 probabilities, not {len(probabilities)}")
    wrong = [p for p in probabilities if not (math.isfinite(p) and p >= 0)]
    if wrong:
        raise InputError(f"{option} must hold finite numbers, 0 or more, not {wrong[0]}")
    total = math.fsum(probabilities)
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise InputError(f"{option} must sum to 1 (within {SUM_TOLERANCE:g}), not to {total:g}")
    return torch.tensor(probabilities, dtype=torch.float64) / total


# ---------------------------------------------------------------------------------------------------------------------
# The exact law of the accepted length
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefixes:
    """What drafted prefixes of one length come to, under a rule that walks from the leaf to the root.

    Attributes:
        log_r: (n,) float64 logarithms of the joint ratios they can have, all different and increasing; -inf for
            prefixes that the target cannot emit.
        ends: (n, w) float64; column s is the probability that a prefix has this ratio and that the walk, should it
            reject everything from column w on, accepts s tokens. A walk ends somewhere, so a row sums to the
            probability of its ratio.
    """

    log_r: Tensor
    ends: Tensor

    def drafted(self, pair: Pair, log_cap: float) -> Prefixes:
        """Each prefix with one more token; the columns stay.

        Args:
            pair: what the token is drawn from.
            log_cap: logarithm of the bound of the joint ratios.

        Raises:
            InputError: more different ratios than fit.
        """
        possible = pair.draft > 0
        q = pair.draft[possible]
        if len(self.log_r) * len(q) > MOST_RATIOS:
            raise InputError(
                "the drafted prefixes have too many different joint ratios for exact results; "
                "use a smaller --max-length or fewer tokens"
            )
        longer = self.log_r[:, None] + (pair.target[possible].log() - q.log())
        log_r, place = longer.clamp(max=log_cap).round(decimals=DECIMALS).unique(return_inverse=True)
        ends = self.ends.new_zeros(len(log_r), self.ends.shape[1])
        for token, probability in enumerate(q.tolist()):
            ends.index_add_(0, place[:, token], self.ends, alpha=probability)
        return Prefixes(log_r, ends)

    def kept(self, where: Tensor) -> Prefixes:
        """Those of the ratios that (n,) ``where`` marks."""
        return Prefixes(self.log_r[where], self.ends[where])

    def tested(self, pair: Pair) -> Prefixes:
        """With a column for these prefixes themselves: each is accepted, after everything below it was rejected, with
        probability S / (S + 1 - r), S = sum over x of max(r p(x) - q(x), 0); for certain where r >= 1."""
        accepted = torch.ones_like(self.log_r)
        below = self.log_r < 0
        r = self.log_r[below].exp()
        mass = torch.clamp(r[:, None] * pair.target - pair.draft, min=0.0).sum(1)
        accepted[below] = mass / (mass + 1.0 - r)
        rejected = 1.0 - accepted[:, None]
        return replace(self, ends=torch.cat([self.ends * rejected, self.ends.sum(1, keepdim=True) * (1 - rejected)], 1))

    def law(self) -> Tensor:
        """(w + 1,) float64, the law of the accepted length if these prefixes are the whole draft: it is accepted with
        probability min(1, r)."""
        accepted = self.log_r.clamp(max=0.0).exp()
        return torch.cat([(1.0 - accepted) @ self.ends, (accepted @ self.ends).sum(0, keepdim=True)])


# Nothing is drafted, and a walk that comes back to it ends there.
NOTHING = Prefixes(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))


def tokenwise_laws(pair: Pair, longest: int) -> list[Tensor]:
    """Token-wise verification: token after token is accepted with min(1, p / q), up to the first that is not.

    Args:
        pair: target and draft.
        longest: draft length to stop at.

    Returns:
        For each draft length L = 1 .. longest (L + 1,) float64, the law of the accepted length.
    """
    accepted = float(torch.minimum(pair.target, pair.draft).sum())
    powers = accepted ** torch.arange(longest + 1, dtype=torch.float64)
    return [torch.cat([powers[:length] * (1.0 - accepted), powers[length : length + 1]]) for length in _to(longest)]


def joint_laws(pair: Pair, longest: int, log_cap: float) -> list[Tensor]:
    """Joint verification of the chain, from the leaf to the root.

    Args:
        pair: target and draft.
        longest: draft length to stop at.
        log_cap: logarithm of the bound of the joint ratios.

    Returns:
        See ``tokenwise_laws``.

    Raises:
        InputError: more different ratios than fit.
    """
    laws, inner = [], NOTHING
    for _ in _to(longest):
        drafted = inner.drafted(pair, log_cap)
        laws.append(drafted.law())
        inner = drafted.tested(pair)
    return laws


def published_laws(pair: Pair, longest: int) -> list[Tensor]:
    """The published rule: inner prefixes are tested by the capped ratio r, the whole draft by the uncapped one, R.

    The two together take too many values. But the walk cannot get past a prefix with r = 1, which is accepted for
    certain. So if it ends at s tokens or later with the draft rejected, it has met none since t, the last such prefix
    up to s. There R = m is at least what it was for any shorter prefix, and what is drafted from t on multiplies r and
    R alike. Hence m is distributed as the ratio of t tokens whose last ones, however many are taken, have a ratio of 1
    or more (read backwards: a walk that never falls below 1), and, independently, what follows as a chain of its own
    that starts at t and stays below 1 until the last token, whose ratio of rho is rejected with 1 - min(1, m rho).

    Args:
        pair: target and draft.
        longest: draft length to stop at.

    Returns:
        See ``tokenwise_laws``.

    Raises:
        InputError: more different ratios than fit.
    """
    peaks, drafts = [NOTHING], []
    inner = NOTHING
    for _ in _to(longest):
        peak = peaks[-1].drafted(pair, UNCAPPED)
        peaks.append(peak.kept(peak.log_r >= 0))
        drafts.append(inner.drafted(pair, UNCAPPED))
        inner = drafts[-1].kept(drafts[-1].log_r < 0).tested(pair)
    laws = []
    for length in _to(longest):
        law = torch.zeros(length + 1, dtype=torch.float64)
        for begun in range(length):
            law[begun:length] += _rejected(peaks[begun], drafts[length - begun - 1])
        law[length] = 1.0 - law[:length].sum()
        laws.append(law)
    return laws


def _rejected(peaks: Prefixes, drafts: Prefixes) -> Tensor:
    """(w,), sum over m and rho of weight(m) * ends(rho) * max(1 - m rho, 0), in one pass over the sorted ratios."""
    log_m, weight = peaks.log_r.clamp(max=LARGEST_LOG), peaks.ends[:, 0]
    smaller = torch.searchsorted(drafts.log_r, -log_m)
    none = drafts.ends.new_zeros(1, drafts.ends.shape[1])
    rho = drafts.log_r.clamp(max=0.0).exp()
    ends = torch.cat([none, drafts.ends.cumsum(0)])[smaller]
    moved = torch.cat([none, (rho[:, None] * drafts.ends).cumsum(0)])[smaller]
    return weight @ ends - (weight * log_m.exp()) @ moved


def _to(longest: int) -> range:
    """The draft lengths up to ``longest``."""
    return range(1, longest + 1)


EXACT_LAWS: dict[str, Callable[[Pair, int], list[Tensor]]] = {
    "tokenwise": tokenwise_laws,
    "blockwise": partial(joint_laws, log_cap=CAPPED),
    "naive_hsd": partial(joint_laws, log_cap=UNCAPPED),
    "hsd": partial(joint_laws, log_cap=CAPPED),
    "hsd_published": published_laws,
}


# ---------------------------------------------------------------------------------------------------------------------
# The same with the package's rules
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Accepted lengths of one rule at one draft length L.

    Attributes:
        rule: that verified.
        law: (L + 1,) float64, the exact law of the accepted length.
        counts: (L + 1,) float64, how many trials accepted so many tokens.
    """

    rule: Rule
    law: Tensor
    counts: Tensor

    @property
    def mean(self) -> float:
        """The exact expected accepted length."""
        return _mean(self.law)

    @property
    def sampled_mean(self) -> float:
        """The mean of the trials."""
        return _mean(self.counts / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Of ``sampled_mean``, by the exact law: the trials' own is 0 where they all came out alike."""
        lengths = torch.arange(len(self.law), dtype=torch.float64)
        return math.sqrt(float(self.law @ (lengths - self.mean) ** 2) / float(self.counts.sum()))

    @property
    def label(self) -> str:
        """The rule's name, marked if what it emits is not the target's."""
        return self.rule.name if self.rule.lossless else f"{self.rule.name} (lossy)"

    @property
    def disagrees(self) -> bool:
        """Whether chance hardly explains the difference of the two means."""
        return abs(self.sampled_mean - self.mean) > SUSPICIOUS * self.standard_error + 1e-9


def _mean(law: Tensor) -> float:
    return float(law @ torch.arange(len(law), dtype=torch.float64))


def draft_chain(pair: Pair, length: int, generator: torch.Generator) -> DraftTree:
    """Draft a chain of ``length`` tokens and keep what they were drawn from; token 0 stands in for the root's."""
    rows = pair.draft.expand(length, -1)
    tokens = draw_rows(rows, uniforms(length, generator))
    depths = torch.arange(length + 1)
    return DraftTree(
        tokens=torch.cat([torch.zeros(1, dtype=torch.int64), tokens]),
        parents=(depths - 1).clamp(min=0),
        depths=depths,
        keys=torch.zeros(length + 1),
        laws=Laws(
            rows=rows,
            row_of=depths - 1,
            columns=torch.cat([torch.tensor([-1]), tokens]),
            support=torch.arange(len(pair.draft)),
        ),
    )


def sampled_lengths(rule: Rule, pair: Pair, length: int, trials: int, generator: torch.Generator) -> Tensor:
    """Draft and verify chains.

    Args:
        rule: to verify with.
        pair: target and draft.
        length: of each chain.
        trials: how many chains.
        generator: source of all randomness.

    Returns:
        (length + 1,) float64, how many trials accepted so many tokens.
    """
    target_probs = pair.target.expand(length + 1, -1)
    counts = torch.zeros(length + 1, dtype=torch.float64)
    with warnings.catch_warnings():
        # That a rule is lossy is said in the table.
        warnings.simplefilter("ignore")
        for _ in range(trials):
            counts[rule.verify(draft_chain(pair, length, generator), target_probs, generator).accept_length] += 1
    return counts


def results_of(pair: Pair, longest: int, trials: int, seed: int) -> list[list[Result]]:
    """For each draft length from 1 on the results of all rules; a progress bar goes to standard error.

    Raises:
        InputError: too many different ratios for exact results.
    """
    laws = {name: exact_laws(pair, longest) for name, exact_laws in EXACT_LAWS.items()}
    generator = torch.Generator().manual_seed(seed)
    results: list[list[Result]] = []
    # Verifying a chain takes time in proportion to its length, more or less.
    with tqdm(total=trials * len(laws) * sum(_to(longest)), unit="token", unit_scale=True, dynamic_ncols=True) as bar:
        for length in _to(longest):
            bar.set_description(f"draft length {length}")
            results.append([])
            for name in laws:
                counts = sampled_lengths(RULES[name], pair, length, trials, generator)
                results[-1].append(Result(RULES[name], laws[name][length - 1], counts))
                bar.update(trials * length)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Showing it
# ---------------------------------------------------------------------------------------------------------------------


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
