"""Greedy verification (temperature 0): follow the target's most likely token while it was drafted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from eagle.tree.draft_tree import DraftTree
from eagle.verification.verdict import Plan, Rule, Toss, refuse_not_finite


class GreedyPlan(Plan):
    """Exact for any tree, whatever its laws: at temperature 0 only the tokens matter. One transfer to the host.

    Args:
        tree: N nodes.
        target_probs: (N, V) probabilities or logits; only the largest entry of a row is used.
    """

    def __init__(self, tree: DraftTree, target_probs: Tensor) -> None:
        super().__init__(tree, target_probs)
        largest, tokens = target_probs.max(dim=-1)
        self._largest, self._wanted = largest.tolist(), tokens.tolist()
        self._drafted = tree.tokens.tolist()

    def walk(self, toss: Toss) -> int:
        """See ``Plan.walk``; no coin is tossed."""
        node = 0
        while True:
            refuse_not_finite(node, self._largest[node])
            wanted = self._wanted[node]
            accepted = next((child for child in self.children[node] if self._drafted[child] == wanted), None)
            if accepted is None:
                return node
            node = accepted

    def remaining(self, node: int) -> Tensor:
        """(V,) one-hot at the largest entry."""
        token = torch.tensor(self._wanted[node], device=self.target_probs.device)
        return functional.one_hot(token, self.target_probs.shape[-1])


RULE = Rule("greedy", GreedyPlan, lossless=True)
