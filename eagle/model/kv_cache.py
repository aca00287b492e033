"""A preallocated key-value cache that keeps a path of a scored tree and forgets the rest, in place.

``transformers``' own ``DynamicLayer`` re-allocates with every step, and its ``StaticLayer`` attends over its whole
capacity. These layers write in place and return views of what is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one attention layer, each (1, heads, capacity, head_dim), allocated at the first update."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (1, heads, n, head_dim) states; returns views of all that is filled."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, start: int, picked: Tensor | None, count: int) -> None:
        """Of the positions from ``start`` on, keep ``picked`` (offsets; None: the first ``count``), moved to ``start``."""
        self.length = start + count
        if picked is not None:
            picked = (start + picked).to(self.keys.device)
            for states in (self.keys, self.values):
                states[:, :, start : self.length] = states.index_select(2, picked)

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity


class TreeCache(Cache):
    """The cache of a whole model.

    Args:
        layers: attention layers of the model.
        capacity: positions to hold, committed tokens and the largest tree together.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.tree_layers = [TreeCacheLayer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.tree_layers))
        self.committed = 0

    def commit_prompt(self) -> None:
        """Everything scored so far is a committed prefix."""
        self.committed = self.get_seq_length()

    def keep(self, path: Sequence[int]) -> None:
        """Commit the nodes ``path`` of the tree scored last, and forget its other nodes.

        Args:
            path: node ids from the root downwards, increasing.
        """
        # Nodes 0..n-1 of the tree lie where they belong already: the first child is node 1, so this is common.
        picked = None if list(path) == list(range(len(path))) else torch.tensor(path)
        for layer in self.tree_layers:
            layer.keep(self.committed, picked, len(path))
        self.committed += len(path)
