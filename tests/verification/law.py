"""The exact law of a token-wise verdict: every outcome, pushed through the rule's own numbers."""

from __future__ import annotations

import torch

from eagle.model.tree import DraftTree
from eagle.verification import tokenwise

Outcome = tuple[tuple[int, ...], int]


def output_law(tree: DraftTree, probs: torch.Tensor) -> dict[Outcome, float]:
    """Probability of each (path, next token)."""
    drafted, _ = tokenwise.drafted_probs(tree, probs)
    children = tree.children()
    law: dict[Outcome, float] = {}

    def visit(path: tuple[int, ...], weight: float) -> None:
        node, remaining = path[-1], 1.0
        for child in children[node]:
            accept = drafted[child] / remaining if remaining > 0 else 0.0
            visit((*path, child), weight * accept)
            weight *= 1 - accept
            remaining -= drafted[child]
        left = tokenwise.residual(probs[node], tree.tokens[children[node]])
        for token, share in enumerate((left / left.sum()).tolist()):
            law[path, token] = law.get((path, token), 0.0) + weight * share

    visit((0,), 1.0)
    return law


def next_law(tree: DraftTree, probs: torch.Tensor) -> torch.Tensor:
    """(V,) law of the first token emitted."""
    first = torch.zeros(probs.shape[-1], dtype=torch.float64)
    for (path, token), weight in output_law(tree, probs).items():
        first[int(tree.tokens[path[1]]) if len(path) > 1 else token] += weight
    return first
