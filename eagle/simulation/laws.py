"""The exact law of the accepted length on a chain of independent tokens, straight from the rules' definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from eagle.errors import InputError

MOST_RATIOS = 300_000

SUM_TOLERANCE = 1e-6

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
    return [
        torch.cat([powers[:length] * (1.0 - accepted), powers[length : length + 1]]) for length in lengths_to(longest)
    ]


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
    for _ in lengths_to(longest):
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
    for _ in lengths_to(longest):
        peak = peaks[-1].drafted(pair, UNCAPPED)
        peaks.append(peak.kept(peak.log_r >= 0))
        drafts.append(inner.drafted(pair, UNCAPPED))
        inner = drafts[-1].kept(drafts[-1].log_r < 0).tested(pair)
    laws = []
    for length in lengths_to(longest):
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


def lengths_to(longest: int) -> range:
    """The draft lengths up to ``longest``."""
    return range(1, longest + 1)


EXACT_LAWS: dict[str, Callable[[Pair, int], list[Tensor]]] = {
    "tokenwise": tokenwise_laws,
    "blockwise": partial(joint_laws, log_cap=CAPPED),
    "naive_hsd": partial(joint_laws, log_cap=UNCAPPED),
    "hsd": partial(joint_laws, log_cap=CAPPED),
    "hsd_published": published_laws,
}
