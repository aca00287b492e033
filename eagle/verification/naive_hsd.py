"""Hierarchical verification of one chain without the cap.

Source: the naive variant in Zhou et al. (arXiv 2601.05724). With uncapped joint ratios r_i = p(x_1 .. x_i) / q(x_1 ..
x_i) the whole chain is accepted with min(1, r_L), which no rule can exceed for whole chains. The price: where the
walk ends before the chain does, what follows the next token is not the target's own law but what is left of it, max(r
p(x) - q(x), 0), until the chain's length is reached. That modified target has to be carried on, and it needs q after
tokens that were never drafted; so the rule is lossless only where the continuation is known: in the simulation and
the exact tables, not in ``eagenerate``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eagle.tree.draft_tree import DraftTree
from eagle.verification.blockwise import chain_plan
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
        r: joint ratio p / q of the prefix, above 1.
    """
    weights = p if math.isinf(r) else torch.clamp(r * p - q, min=0.0)
    return weights / weights.sum()


RULE = Rule("naive_hsd", plan, lossless=True, chains_only=True)
