"""A preallocated key-value cache that keeps a path of a scored tree and forgets the rest, in place.

``transformers``' own ``DynamicLayer`` re-allocates with every step, and its ``StaticLayer`` attends over its whole
capacity. These layers write in place and return views of what is filled, or, for scoring a tree under a mask, of
a little more: attention kernels are generated for the number of keys, and on a CPU generating and keeping one for every
length costs more than masking a few positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from eagle.devices import sent

# Scoring under a mask sees keys in multiples of this.
VIEW_STEP = 64


class Slabs:
    """Memory for the keys and values of several layers, layers of one shape side by side in one tensor.

    So a path is compacted by one operation for all layers instead of two for each.

    Args:
        capacity: positions of every layer at least; rounded up to a whole view.
        tensors: tensors of one shape a slab has room for.

    Attributes:
        view: positions that an update returns at least, filled or not.
    """

    def __init__(self, capacity: int, tensors: int) -> None:
        self.capacity, self.tensors = _round_up(capacity), tensors
        self.view = 0
        self.slabs: list[Tensor] = []
        self._free: dict[tuple[object, ...], list[Tensor]] = {}

    def reuse(self) -> None:
        """Give all memory to a new cache. What is in it stays: finite numbers that the next user masks."""
        self.view = 0
        self._free = {}
        for slab in self.slabs:
            self._free.setdefault(_kind(slab[0]), []).extend(slab)

    def take(self, like: Tensor) -> Tensor:
        """Zeros for states like (1, heads, n, head_dim): (1, heads, capacity, head_dim)."""
        shape = (*like.shape[:2], self.capacity, like.shape[-1])
        free = self._free.setdefault(_kind(like), [])
        if not free:
            # Not empty memory: what is masked is still multiplied, and may not be NaN.
            slab = like.new_zeros(self.tensors, *shape)
            self.slabs.append(slab)
            free.extend(slab)
        return free.pop()

    def move(self, picked: Tensor, start: int) -> None:
        """Copy the positions ``picked`` (int64, on the host) to ``start`` and after, in all tensors."""
        for slab in self.slabs:
            slab[..., start : start + len(picked), :] = slab.index_select(-2, sent(picked, slab.device))


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one attention layer, each (1, heads, capacity, head_dim), taken at the first update."""

    is_sliding = False

    def __init__(self, slabs: Slabs) -> None:
        super().__init__()
        self.slabs = slabs
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for states of these shapes."""
        self.keys, self.values = self.slabs.take(key_states), self.slabs.take(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (1, heads, n, head_dim) states; returns views of what is filled, of ``slabs.view`` at least."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        seen = max(end, self.slabs.view)
        return self.keys[:, :, :seen], self.values[:, :, :seen]

    def get_seq_length(self) -> int:
        """Positions filled."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key positions that ``query_length`` new tokens attend to, and the offset of the first."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Positions there is room for."""
        return self.slabs.capacity


class TreeCache(Cache):
    """The cache of a whole model.

    Args:
        layers: attention layers of the model.
        slabs: their memory.
    """

    def __init__(self, layers: int, slabs: Slabs) -> None:
        self.slabs = slabs
        self.tree_layers = [TreeCacheLayer(self.slabs) for _ in range(layers)]
        super().__init__(layers=list(self.tree_layers))
        self.committed = 0

    def commit_prompt(self, length: int) -> None:
        """The first ``length`` positions are the committed prompt; forget what follows."""
        self._commit(length)

    def forget(self) -> None:
        """Begin anew, as an empty cache does."""
        self.view_exactly()
        self._commit(0)

    def view_masked(self, nodes: int) -> int:
        """Let the next update of ``nodes`` tokens return some positions that are not filled; returns how many in all.

        The caller masks what lies behind ``committed + nodes``.
        """
        self.slabs.view = _round_up(self.committed + nodes)
        return self.slabs.view

    def view_exactly(self) -> None:
        """Let the next update return what is filled and no more."""
        self.slabs.view = 0

    def keep(self, path: Sequence[int]) -> None:
        """Commit the nodes ``path`` of the tree scored last, and forget its other nodes.

        Args:
            path: node ids from the root downwards, increasing.
        """
        # Nodes that lie where they belong need no copy: the first child is node 1, so this is common.
        stay = next((place for place, node in enumerate(path) if place != node), len(path))
        if stay < len(path):
            self.slabs.move(self.committed + torch.tensor(path[stay:]), self.committed + stay)
        self._commit(self.committed + len(path))

    def _commit(self, length: int) -> None:
        self.committed = length
        for layer in self.tree_layers:
            layer.length = length


def _kind(states: Tensor) -> tuple[object, ...]:
    """What makes two tensors of states interchangeable, whatever their number of positions."""
    return (*states.shape[:2], states.shape[-1], states.dtype, states.device)


def _round_up(positions: int) -> int:
    return -(-positions // VIEW_STEP) * VIEW_STEP
