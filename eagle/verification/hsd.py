"""Hierarchical (joint) verification: from the leaves to the root, by the ratio of whole paths.

Source: hierarchical speculative decoding (Zhou et al., arXiv 2601.05724) with its cap applied consistently, which on
one chain is block verification (Sun et al. 2024); on trees, traversal verification (Weng et al. 2025) for any
sequence of laws. See docs/hsd.md.

A child is looked at only after its elder siblings were rejected, so its weight, and the final acceptance of every
node, are functions of the tree and the target alone. They are reckoned from the root downwards; only then the tree is
walked, depth first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from eagle.tree.draft_tree import DraftTree
from eagle.verification.families import Families
from eagle.verification.siblings import weigh
from eagle.verification.verdict import Plan, Rule, Toss, refuse_not_finite


class LeafFirstPlan(Plan):
    """A depth-first walk that accepts at the first node whose own coin says so, children before parents.

    What a rule adds are the weights, in its constructor.

    Args:
        tree: the drafted tree.
        families: of it.
        r: the weight of each node.
        stop: the probability that a node is accepted after all its children were rejected.
        reached: see ``Weighed``.
    """

    def __init__(
        self,
        tree: DraftTree,
        families: Families,
        r: Mapping[int, float],
        stop: Mapping[int, float],
        reached: Mapping[int, Sequence[float]],
    ) -> None:
        super().__init__(tree, families.target_probs)
        self._families, self._r, self._stop, self._reached = families, r, stop, reached

    def walk(self, toss: Toss) -> int:
        """See ``Plan.walk``."""
        end = self._through(0, toss)
        return 0 if end is None else end

    def _through(self, node: int, toss: Toss) -> int | None:
        """Where the walk ends if it does in or below ``node``; None if the node is rejected."""
        refuse_not_finite(node, self._families.probe[node])
        for child in self.children[node]:
            end = self._through(child, toss)
            if end is not None:
                return end
        return node if toss(self._stop[node]) else None

    def remaining(self, node: int) -> Tensor:
        """See ``Plan.remaining``: what the rejection of all its children left at the node."""
        return self._families.remaining(node, self._r[node], self._reached.get(node, ()))


def plan(tree: DraftTree, target_probs: Tensor) -> LeafFirstPlan:
    """Lossless for any tree and any laws; the device is waited for as often as a path has laws before its nodes.

    Args:
        tree: N nodes.
        target_probs: (N, V) probabilities of the token after each node.
    """
    families = Families(tree, target_probs)
    weighed = weigh(families, {0: 1.0}, joint=True)
    r = {0: 1.0, **weighed.weights}
    # A leaf's own coin is its weight.
    return LeafFirstPlan(tree, families, r, {**r, **weighed.stop}, weighed.reached)


RULE = Rule("hsd", plan, lossless=True)
