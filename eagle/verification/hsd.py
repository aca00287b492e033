"""Hierarchical (joint) verification: from the leaves to the root, by the ratio of whole paths.

Source: hierarchical speculative decoding (Zhou et al., arXiv 2601.05724) with its cap applied consistently, which on
one chain is block verification (Sun et al. 2024); on trees, traversal verification (Weng et al. 2025) for any
sequence of laws. See docs/hsd.md.

A child is looked at only after its elder siblings were rejected, so its weight, and the final acceptance of every
node, are functions of the tree and the target alone. They are computed from the root downwards, a level at a time;
only then the tree is walked, depth first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.tree.draft_tree import DraftTree
from eagle.verification.siblings import Siblings
from eagle.verification.verdict import Plan, Rule, Toss, refuse_not_finite


class LeafFirstPlan(Plan):
    """A depth-first walk that accepts at the first node whose own coin says so, children before parents.

    What a rule adds are the weights, in its constructor.

    Args:
        tree: N nodes.
        siblings: the tree's families, tested with these weights.
        r: (N,) the weight of each node, on the device.
        stop: (N,) the probability that a node is accepted after all its children were rejected.
        reached: of each row of ``siblings``, see ``Tested``.
    """

    def __init__(self, tree: DraftTree, siblings: Siblings, r: Tensor, stop: Tensor, reached: Tensor) -> None:
        super().__init__(tree, siblings.target_probs)
        self._siblings, self._r, self._reached = siblings, r, reached
        self._stop, self._probe = torch.stack([stop, self.target_probs[:, 0].to(stop.dtype)]).tolist()

    def walk(self, toss: Toss) -> int:
        """See ``Plan.walk``."""
        end = self._through(0, toss)
        return 0 if end is None else end

    def _through(self, node: int, toss: Toss) -> int | None:
        """Where the walk ends if it does in or below ``node``; None if the node is rejected."""
        refuse_not_finite(node, self._probe[node])
        for child in self.children[node]:
            end = self._through(child, toss)
            if end is not None:
                return end
        return node if toss(self._stop[node]) else None

    def remaining(self, node: int) -> Tensor:
        """See ``Plan.remaining``: what the rejection of all its children left at the node."""
        row = self._siblings.row.get(node)
        return self._siblings.remaining(node, self._r[node], self._r if row is None else self._reached[row])


def plan(tree: DraftTree, target_probs: Tensor) -> LeafFirstPlan:
    """Lossless for any tree and any laws; about 20 small kernels a level, one transfer to the host.

    Args:
        tree: N nodes.
        target_probs: (N, V) probabilities of the token after each node.
    """
    siblings = Siblings(tree, target_probs, by_level=True)
    r = torch.ones(len(tree) + 1, dtype=siblings.wide, device=target_probs.device)
    stop = torch.ones_like(r)
    reached = []
    for group in siblings.groups:
        parents, children = siblings.parents[group], siblings.children[group]
        tested = siblings.test(group, r[parents])
        # A leaf's own coin is its weight; those of inner nodes are replaced when their level comes.
        r[children] = stop[children] = tested.weights
        stop[parents] = tested.stop
        reached.append(tested.reached)
    return LeafFirstPlan(tree, siblings, r[:-1], stop[:-1], torch.cat(reached) if reached else r)


RULE = Rule("hsd", plan, lossless=True)
