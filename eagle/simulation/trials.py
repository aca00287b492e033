"""The same chains drafted and verified with the package's own rules."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from eagle.simulation.laws import EXACT_LAWS, Pair, lengths_to
from eagle.tree.draft_tree import DraftTree, Laws
from eagle.tree.drawing import draw_rows, uniforms
from eagle.verification import RULES, Rule

SUSPICIOUS = 4.0


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
    with tqdm(
        total=trials * len(laws) * sum(lengths_to(longest)), unit="token", unit_scale=True, dynamic_ncols=True
    ) as bar:
        for length in lengths_to(longest):
            bar.set_description(f"draft length {length}")
            results.append([])
            for name in laws:
                counts = sampled_lengths(RULES[name], pair, length, trials, generator)
                results[-1].append(Result(RULES[name], laws[name][length - 1], counts))
                bar.update(trials * length)
    return results
