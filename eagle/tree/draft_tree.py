"""The draft tree: tokens, where they hang, and the laws that those which were drawn come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

ONE_HOT = -1


@dataclass(frozen=True)
class Laws:
    """What the tokens of a tree's nodes were drawn from, given everything drawn before them.

    Attributes:
        rows: (R, D) probabilities over the draft vocabulary, each of sum 1.
        row_of: (N,) int64 on the host, the row of each node; ``ONE_HOT`` where the token was picked, not drawn.
        columns: (N,) int64 on the host, each node's token as an index into the draft vocabulary; -1 where it is not in
            it, as the root's may not be.
        support: (D,) int64, the target ids of the columns, all different.
    """

    rows: Tensor
    row_of: Tensor
    columns: Tensor
    support: Tensor


@dataclass(frozen=True)
class DraftTree:
    """A drafted tree of N nodes. Node 0 is the root, the last committed token; the others are in the order in which
    they were decided on: parents come before their children, and where a node hangs and what law its token has depend
    on nodes before it only.

    Structure lives on the host, where the walk through the tree takes place.

    Attributes:
        tokens: (N,) int64 on the host, target vocabulary ids.
        parents: (N,) int64 on the host; the root is its own parent.
        depths: (N,) int64 on the host; 0 for the root.
        keys: (N,) float32 (float64 for a float64 head) on the host, the logarithm of what a node was ranked by; 0 for
            the root. Of deterministic nodes it is the head's cumulative log-probability.
        laws: of the sampled nodes; None: the tree has none.
        twins: (N,) int64 on the host, where a sibling has the same token: for each node the eldest such sibling, else
            the node itself. Younger ones are leaves, which nobody needs to score. None: all siblings differ.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    keys: Tensor
    laws: Laws | None = None
    twins: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def draft_length(self) -> int:
        """Tokens on the longest root-to-leaf path, the root included."""
        return max(self.depths.tolist()) + 1

    @cached_property
    def children(self) -> list[list[int]]:
        """For each node the ids of its children in the order of verification: by the first node that was drawn in
        each one's subtree, the child itself included; picks with nothing drawn below them come last."""
        parents, nodes = self.parents.tolist(), range(1, len(self))
        drawn = [False] * len(self)
        if self.laws is not None:
            drawn = [row != ONE_HOT for row in self.laws.row_of.tolist()]
        first = [node if drawn[node] else len(self) for node in range(len(self))]
        for node in reversed(nodes):
            first[parents[node]] = min(first[parents[node]], first[node])
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node in sorted(nodes, key=first.__getitem__):
            children[parents[node]].append(node)
        return children

    def path_to(self, node: int) -> tuple[int, ...]:
        """Ids of the nodes from the root down to ``node``."""
        path, parents = [node], self.parents.tolist()
        while path[-1]:
            path.append(parents[path[-1]])
        return tuple(reversed(path))

    def ancestors(self) -> Tensor:
        """(N, N) bool on the host; row i marks node i and all its ancestors, which are what node i attends to."""
        seen = torch.eye(len(self), dtype=torch.bool)
        current = self.parents
        for _ in range(self.draft_length - 1):
            seen.scatter_(1, current[:, None], True)
            current = self.parents[current]
        return seen

    def scored(self) -> tuple[DraftTree, Tensor]:
        """The tree that the target has to score for this one, without laws, and for each node of this one its place
        there, (N,) int64 on the host."""
        if self.twins is None:
            return self, torch.arange(len(self))
        eldest = self.twins == torch.arange(len(self))
        place = (eldest.cumsum(0) - 1)[self.twins]
        return (
            DraftTree(
                self.tokens[eldest],
                place[self.parents[eldest]],
                self.depths[eldest],
                self.keys[eldest],
            ),
            place,
        )

    def best(self, total_token: int) -> DraftTree:
        """Of a grown tree: the tree that growth with the same draws and a smaller ``total_token`` keeps, which are its
        first nodes."""
        laws = self.laws
        if laws is not None:
            laws = replace(laws, row_of=laws.row_of[:total_token], columns=laws.columns[:total_token])
        return DraftTree(
            tokens=self.tokens[:total_token],
            parents=self.parents[:total_token],
            depths=self.depths[:total_token],
            keys=self.keys[:total_token],
            laws=laws,
            twins=None if self.twins is None else self.twins[:total_token],
        )


def root_only(token: int) -> DraftTree:
    """A tree without drafts: scoring it is one step of autoregressive decoding.

    Args:
        token: the last committed token.
    """
    zero = torch.zeros(1, dtype=torch.int64)
    return DraftTree(tokens=torch.tensor([token]), parents=zero, depths=zero, keys=torch.zeros(1))
