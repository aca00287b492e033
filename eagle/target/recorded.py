"""Forwards over trees, recorded: one launch for each.

A recording is of one number of nodes and one width of what they attend to, so trees are filled up with nodes that
nobody attends to, and widths are coarse. All else that changes from round to round is in tensors.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from eagle.devices import sent
from eagle.launches import Recorded
from eagle.target.kv_cache import Slabs, TreeCache
from eagle.tree.draft_tree import DraftTree

# A lone root, and beyond it multiples of this many nodes; widths are multiples of that many positions.
NODES, WIDTH = 8, 256
# Recordings that are kept, for one memory of caches.
MOST = 32


class Rows(Protocol):
    """What is said of nodes, a row for each."""

    def first(self, count: int) -> Self:
        """The first rows, in memory of their own."""


Scores = TypeVar("Scores", bound=Rows)


@dataclass(frozen=True)
class _Forward(Generic[Scores]):
    """A recorded forward.

    Attributes:
        numbers: (1 + 2n,) int64, what it reads: the number of committed tokens, then tokens, then depths of n nodes.
        seen: (n, n) bool, likewise: what each node attends to.
        scores: what it computes.
    """

    numbers: Tensor
    seen: Tensor
    scores: Recorded[Scores]


class RecordedForwards(Generic[Scores]):
    """Scores trees with recorded forwards.

    Args:
        score: scores nodes by what tensors say, see ``Target.score_recorded``.
        device: the target's.
    """

    def __init__(self, score: Callable[[Tensor, Tensor, TreeCache, int, bool], Scores], device: torch.device) -> None:
        self._score, self._device = score, device
        # Recordings are of the memory that they read and write.
        self._forwards: weakref.WeakKeyDictionary[Slabs, OrderedDict[object, _Forward[Scores]]] = (
            weakref.WeakKeyDictionary()
        )

    def score(self, tree: DraftTree, cache: TreeCache, features: bool) -> Scores | None:
        """See ``Target.score``; None where there is no room for the filled-up tree."""
        count = len(tree)
        filled = 1 if count == 1 else -(-count // NODES) * NODES
        end = cache.committed + filled
        if end > cache.slabs.capacity:
            return None
        width = min(-(-end // WIDTH) * WIDTH, cache.slabs.capacity)
        padding = (0, filled - count)
        tokens, depths = (functional.pad(each, padding) for each in (tree.tokens, tree.depths))
        numbers = torch.cat([torch.tensor([cache.committed]), tokens, depths])
        seen = torch.eye(filled, dtype=torch.bool)
        seen[:count, :count] = tree.ancestors()
        scores = self._forward(numbers, seen, cache, width, features).scores()
        cache.written(count)
        return scores.first(count)

    def _forward(self, numbers: Tensor, seen: Tensor, cache: TreeCache, width: int, features: bool) -> _Forward[Scores]:
        """The recording for these sizes, its inputs written."""
        known = self._forwards.setdefault(cache.slabs, OrderedDict())
        # The memory of the first layer stands for that of all: they are given out in the same order.
        key = (len(seen), width, features, cache.tree_layers[0].keys.data_ptr())
        if key in known:
            known.move_to_end(key)
            forward = known[key]
            forward.numbers.copy_(numbers, non_blocking=True)
            forward.seen.copy_(seen, non_blocking=True)
            return forward
        numbers, seen = sent(numbers, self._device), sent(seen, self._device)
        scores = Recorded(lambda: self._score(numbers, seen, cache, width, features), self._device)
        known[key] = _Forward(numbers, seen, scores)
        if len(known) > MOST:
            known.popitem(last=False)
        return known[key]
