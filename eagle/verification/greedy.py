"""Greedy verification (temperature 0): follow the target's most likely token while it was drafted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eagle.model.tree import DraftTree
from eagle.verification.verdict import Verdict, not_finite


def verify(tree: DraftTree, target_probs: Tensor, generator: torch.Generator | None = None) -> Verdict:
    """Accept the path of the target's most likely tokens. Exact for any tree; one transfer to the host.

    Args:
        tree: N nodes, of any law: at temperature 0 only the tokens matter.
        target_probs: (N, V) probabilities or logits; only the largest entry of a row is used.
        generator: not used, nothing is random.

    Raises:
        InputError: a row holds NaN or infinity.
    """
    values, tokens = target_probs.max(dim=-1)
    wanted = tokens.tolist()
    largest = values.tolist()
    drafted = tree.tokens.tolist()
    children = tree.children()
    path = [0]
    while True:
        node = path[-1]
        if not math.isfinite(largest[node]):
            raise not_finite(node)
        accepted = next((child for child in children[node] if drafted[child] == wanted[node]), None)
        if accepted is None:
            return Verdict(tuple(path), tokens[node])
        path.append(accepted)
