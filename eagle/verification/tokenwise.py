"""Token-wise verification: recursive rejection sampling, from the root to the leaves.

Source: Leviathan et al. 2023 (one drafted token), SpecInfer (Miao et al. 2023) and EAGLE (Li et al. 2024) for several
siblings. At each node its children are tested in order, each against its own law and what the rejection of its elder
siblings has left of the target's; the walk goes on below the first that is accepted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.tree.draft_tree import DraftTree
from eagle.verification.siblings import Siblings
from eagle.verification.verdict import Plan, Rule, Toss, refuse_not_finite


class TokenwisePlan(Plan):
    """Lossless for any tree and any laws. All nodes are looked at together; one transfer to the host."""

    def __init__(self, tree: DraftTree, target_probs: Tensor) -> None:
        super().__init__(tree, target_probs)
        self._siblings = Siblings(tree, target_probs, by_level=False)
        weights = torch.zeros(len(tree) + 1, dtype=self._siblings.wide, device=target_probs.device)
        for group in self._siblings.groups:
            # A node is entered only when it is accepted, so from there on with certainty.
            certain = torch.ones_like(weights[: group.stop - group.start])
            tested = self._siblings.test(group, certain)
            weights[self._siblings.children[group]] = tested.weights
            self._reached = tested.reached
        self._weights, self._probe = torch.stack([weights[:-1], target_probs[:, 0].to(weights.dtype)]).tolist()

    def walk(self, toss: Toss) -> int:
        """See ``Plan.walk``."""
        node = 0
        while True:
            refuse_not_finite(node, self._probe[node])
            accepted = next((child for child in self.children[node] if toss(self._weights[child])), None)
            if accepted is None:
                return node
            node = accepted

    def remaining(self, node: int) -> Tensor:
        """See ``Plan.remaining``: the target law less what the children's laws claimed of it."""
        certain = self.target_probs.new_ones((), dtype=self._siblings.wide)
        row = self._siblings.row.get(node)
        return self._siblings.remaining(node, certain, certain if row is None else self._reached[row])


RULE = Rule("tokenwise", TokenwisePlan, lossless=True)
