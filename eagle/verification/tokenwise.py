"""Token-wise verification: recursive rejection sampling, from the root to the leaves.

Source: Leviathan et al. 2023 (one drafted token), SpecInfer (Miao et al. 2023) and EAGLE (Li et al. 2024) for several
siblings. At each node its children are tested in order, each against its own law and what the rejection of its elder
siblings has left of the target's; the walk goes on below the first that is accepted.
"""

from __future__ import annotations

from torch import Tensor

from eagle.tree.draft_tree import DraftTree
from eagle.verification.families import Families
from eagle.verification.siblings import weigh
from eagle.verification.verdict import Plan, Rule, Toss, refuse_not_finite


class TokenwisePlan(Plan):
    """Lossless for any tree and any laws; the device is waited for as often as a node has drawn children."""

    def __init__(self, tree: DraftTree, target_probs: Tensor) -> None:
        super().__init__(tree, target_probs)
        self._families = families = Families(tree, target_probs)
        # A node is entered only when it is accepted, so from there on with certainty.
        self._weighed = weigh(families, dict.fromkeys(families.of, 1.0))

    def walk(self, toss: Toss) -> int:
        """See ``Plan.walk``."""
        node = 0
        while True:
            refuse_not_finite(node, self._families.probe[node])
            accepted = next((child for child in self.children[node] if toss(self._weighed.weights[child])), None)
            if accepted is None:
                return node
            node = accepted

    def remaining(self, node: int) -> Tensor:
        """See ``Plan.remaining``: the target law less what the children's laws claimed of it."""
        return self._families.remaining(node, 1.0, self._weighed.reached.get(node, ()))


RULE = Rule("tokenwise", TokenwisePlan, lossless=True)
