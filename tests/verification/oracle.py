"""Joint and token-wise verification as the plain recursions of docs/hsd.md, one child at a time: slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.tree.draft_tree import ONE_HOT, DraftTree


def law_of(tree: DraftTree, node: int, vocabulary: int) -> Tensor:
    """(V,) law of a node's token."""
    law = torch.zeros(vocabulary, dtype=torch.float64)
    if tree.laws is None or tree.laws.row_of[node] == ONE_HOT:
        law[tree.tokens[node]] = 1.0
    else:
        law[tree.laws.support] = tree.laws.rows[tree.laws.row_of[node]].double()
    return law


def outcomes(tree: DraftTree, probs: Tensor, joint: bool) -> list[tuple[int, float, Tensor]]:
    """(node where the path ends, probability, law of the next token) of every way a round can go."""
    found: list[tuple[int, float, Tensor]] = []
    children = tree.children
    tokens = tree.tokens.tolist()

    def verify(node: int, r: float, chance: float) -> float:
        """Record what ends in or below ``node``, arrived at with probability ``chance``; returns what is rejected."""
        p = probs[node].double().clone()
        for child in children[node]:
            q = law_of(tree, child, len(p))
            weight = min(1.0, r * float(p[tokens[child]]) / float(q[tokens[child]]))
            chance = verify(child, weight, chance) if joint else chance - _enter(child, weight, chance)
            left = (r * p - q).clamp(min=0.0)
            mass = float(left.sum())
            if mass == 0.0:
                r = 1.0 if r == 1.0 else 0.0
                break
            p, r = left / mass, mass / (mass + (1.0 - r))
        found.append((node, chance * r, p))
        return chance * (1.0 - r)

    def _enter(child: int, weight: float, chance: float) -> float:
        verify(child, 1.0, chance * weight)
        return chance * weight

    verify(0, 1.0, 1.0)
    return found
