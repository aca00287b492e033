"""Hierarchical verification of one chain without the cap.

Source: the naive variant in Zhou et al. (arXiv 2601.05724). With uncapped joint ratios r_i = p(x_1 .. x_i) / q(x_1 ..
x_i) the whole chain is accepted with min(1, r_L), which no rule can exceed for whole chains. The price: where the
walk ends before the chain does, what follows the next token is not the target's own law but what is left of it, max(r
p(x) - q(x), 0), until the chain's length is reached. That modified target is carried on token by token, and it needs q
after tokens that were never drafted, which a separate draft model knows: one step of both models a token. So the rule
is lossless, and slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.tree.draft_tree import DraftTree
from eagle.verification.blockwise import chain_plan
from eagle.verification.families import Families
from eagle.verification.hsd import LeafFirstPlan
from eagle.verification.verdict import Rule


def plan(tree: DraftTree, target_probs: Tensor) -> LeafFirstPlan:
    """See ``blockwise.chain_plan``."""
    return chain_plan(tree, target_probs, "naive_hsd", cap=math.inf)


def modified_target(p: Tensor, q: Tensor, r: float) -> Tensor:
    """The law of the next token behind a prefix that was not drafted, before the chain's length is reached.

    Args:
        p: (V,) the target's law behind the prefix.
        q: (V,) the draft's.
        r: joint ratio p / q of the prefix, above 1. Where the prefix was only drawn for a rounding error, it may be 1
            or hardly less, and nothing may be left: then it is the target's own law.
    """
    weights = p if math.isinf(r) else torch.clamp(r * p - q, min=0.0)
    weights = torch.where(weights.sum() > 0, weights, p)
    return weights / weights.sum()


@dataclass(frozen=True)
class Carried:
    """What a round leaves to the tokens behind it.

    Attributes:
        ratio: joint ratio p / q of the drafted prefix and what follows it so far, above 1.
        left: tokens up to the chain's length that are still to be drawn from the modified target.
    """

    ratio: float
    left: int

    @property
    def over(self) -> bool:
        """Whether the target's own law follows: the length is reached, or the draft would not have come here."""
        return self.left <= 0 or math.isinf(self.ratio)

    def behind(self, p: Tensor, q: Tensor, token: int) -> Carried:
        """After one more token, drawn from the modified target of the laws (V,) ``p`` and ``q``."""
        return Carried(_times(self.ratio, float(p[token]), float(q[token])), self.left - 1)


def carried(tree: DraftTree, target_probs: Tensor, accepted: int, token: int) -> Carried:
    """What a verified chain leaves behind.

    Args:
        tree: a chain of N nodes.
        target_probs: (N, V) probabilities of the token after each node.
        accepted: tokens of it that were accepted.
        token: that follows them.
    """
    length = len(tree) - 1
    if tree.laws is None or accepted == length:
        return Carried(1.0, 0)
    families = Families(tree, target_probs).of
    ratio = math.prod(families[node].ratios[0] for node in range(accepted))
    place = (tree.laws.support == token).nonzero()[:, 0].tolist()
    q = float(tree.laws.rows[int(tree.laws.row_of[accepted + 1]), place[0]]) if place else 0.0
    return Carried(_times(ratio, float(target_probs[accepted, token]), q), length - accepted - 1)


def _times(ratio: float, p: float, q: float) -> float:
    return ratio * p / q if q > 0 else math.inf


RULE = Rule("naive_hsd", plan, lossless=True, chains_only=True, follows_every_prefix=True)
