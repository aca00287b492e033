"""Block verification of one drafted chain.

Source: Sun et al. 2024 (arXiv 2403.10444, algorithm 2). With r_0 = 1 and r_i = min(1, r_{i-1} p(x_i) / q(x_i)), the
block x_1 .. x_i is accepted with probability h_i = S_i / (S_i + 1 - r_i), S_i = sum over x of max(r_i p(x) - q(x),
0), and the whole chain with its r; the longest accepted block counts. Optimal for one chain.
"""

from __future__ import annotations

from torch import Tensor

from eagle.errors import InputError
from eagle.tree.draft_tree import DraftTree
from eagle.verification.families import Families
from eagle.verification.hsd import LeafFirstPlan
from eagle.verification.siblings import weigh
from eagle.verification.verdict import Rule


def chain_plan(tree: DraftTree, target_probs: Tensor, name: str, cap: float) -> LeafFirstPlan:
    """Joint verification of a chain; one vocabulary-wide step for all positions together.

    Args:
        tree: a chain of N nodes.
        target_probs: (N, V) probabilities of the token after each node.
        name: of the rule, for the error.
        cap: bound of the joint ratios r_i; 1 is block verification.

    Raises:
        InputError: the tree branches.
    """
    if any(len(children) > 1 for children in tree.children):
        raise InputError(
            f"the rule {name} verifies a single chain, and this tree branches; use tree='chain' or the rule hsd"
        )
    families = Families(tree, target_probs)
    r = [1.0]
    # Without branches the child of node i is node i + 1.
    for node in range(len(tree) - 1):
        r.append(min(r[-1] * families.of[node].ratios[0], cap))
    weights = dict(enumerate(r))
    weighed = weigh(families, weights)
    stop = {node: min(at, 1.0) for node, at in {**weights, **weighed.stop}.items()}
    return LeafFirstPlan(tree, families, weights, stop, weighed.reached)


def plan(tree: DraftTree, target_probs: Tensor) -> LeafFirstPlan:
    """Lossless for one chain. Arguments and errors as ``chain_plan``."""
    return chain_plan(tree, target_probs, "blockwise", cap=1.0)


RULE = Rule("blockwise", plan, lossless=True, chains_only=True)
