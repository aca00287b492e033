"""The nodes that a drafter's model ran on in growing a tree, and which of them a text goes on over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Levels:
    """What ``growth.Expand`` was asked, level by level; a node's place is its number in the order of asking."""

    def __init__(self) -> None:
        self._levels: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._levels)

    def add(self, tokens: Tensor, parents: Tensor) -> None:
        """A level: (k,) tokens, and (k,) the index of each one's parent in the level before."""
        self._levels.append((tokens, parents))

    def places(self, accepted: Sequence[int]) -> list[int]:
        """Of the nodes those that these tokens, behind the root, are on; one transfer to the host."""
        if not self._levels:
            return []
        table = torch.cat([torch.stack(level) for level in self._levels], dim=1).tolist()
        found: list[int] = []
        start, above = 0, 0
        # The last accepted node may be a leaf that was not run on, and the tree may be deeper than what was accepted.
        depth = min(len(accepted), len(self._levels))
        for token, (level, _) in zip(accepted[:depth], self._levels[:depth], strict=True):
            places = range(start, start + len(level))
            node = next((i for i in places if table[0][i] == token and table[1][i] == above), None)
            if node is None:
                break
            found.append(node)
            above, start = node - start, start + len(level)
        return found
