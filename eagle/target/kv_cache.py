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
from eagle.target.memory import Memory

# Scoring under a mask sees keys in multiples of this.
VIEW_STEP = 64
# Positions that caches have at least whose memory should last.
LASTING = 1024


class Slabs:
    """Memory for the keys and values of several layers, the keys of layers of one shape side by side in one tensor, and
    their values in another.

    So a path is compacted by two operations for all layers instead of two for each. The compiler copies what it is to
    write to if keys and values share a tensor; and the heads of a position lie side by side, so that how far apart two
    entries lie does not depend on the capacity: a compiled forward would be one for each.

    Args:
        capacity: positions of every layer at least; rounded up to a whole view.
        tensors: layers of one shape a slab has room for.

    Attributes:
        view: positions that an update returns at least, filled or not.
    """

    def __init__(self, capacity: int, tensors: int) -> None:
        self.capacity, self.tensors = _round_up(capacity), tensors
        self.view = 0
        self.slabs: list[Tensor] = []
        self._free: dict[tuple[object, ...], list[Tensor]] = {}
        self._roles: list[str] = []

    def reuse(self) -> None:
        """Give all memory to a new cache. What is in it stays: finite numbers that the next user masks."""
        self.view = 0
        self._free = {}
        for slab, role in zip(self.slabs, self._roles, strict=True):
            self._offer(slab, role)

    def take(self, like: Tensor, role: str) -> Tensor:
        """Zeros for states like (1, heads, n, head_dim), ``keys`` or ``values``: (1, heads, capacity, head_dim)."""
        batch, heads, _, width = like.shape
        if not self._free.get((role, *_kind(like))):
            # Not empty memory: what is masked is still multiplied, and may not be NaN.
            slab = like.new_zeros(self.tensors, batch, self.capacity, heads, width)
            self.slabs.append(slab)
            self._roles.append(role)
            self._offer(slab, role)
        return self._free[role, *_kind(like)].pop()

    def move(self, picked: Tensor, start: int) -> None:
        """Copy the positions ``picked`` (int64, on the host) to ``start`` and after, in all tensors."""
        for slab in self.slabs:
            slab[:, :, start : start + len(picked)] = slab.index_select(2, sent(picked, slab.device))

    def _offer(self, slab: Tensor, role: str) -> None:
        for states in slab.transpose(2, 3):
            self._free.setdefault((role, *_kind(states)), []).append(states)


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one attention layer, each (1, heads, capacity, head_dim), taken at the first update."""

    is_sliding = False

    def __init__(self, slabs: Slabs) -> None:
        super().__init__()
        self.slabs = slabs
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for states of these shapes."""
        self.keys, self.values = self.slabs.take(key_states, "keys"), self.slabs.take(value_states, "values")
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


class LayerSlots:
    """The cache of one layer as a compiled forward sees it: states go to the slots that a tensor names, and all that
    there is a view of is attended to. No number in it changes from round to round, only what tensors hold.

    Args:
        keys: (1, heads, m, head_dim), a view of the layer's memory.
        values: likewise.
        slots: (n,) int64 below m, where the states of n tokens go.
    """

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self.keys, self.values, self.slots = keys, values, slots

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See ``TreeCacheLayer.update``."""
        torch.ops.eagle.write_slots(self.keys, self.values, self.slots, key_states, value_states)
        return self.keys, self.values


def _write_slots(keys: Tensor, values: Tensor, slots: Tensor, key_states: Tensor, value_states: Tensor) -> None:
    keys.index_copy_(2, slots, key_states)
    values.index_copy_(2, slots, value_states)


def _write_nothing(keys: Tensor, values: Tensor, slots: Tensor, key_states: Tensor, value_states: Tensor) -> None:
    """What the compiler has to know of the shapes that are returned."""


# One operation of its own, which is told to write in place: the compiler's own index_copy_ copies all that is there.
torch.library.define(
    "eagle::write_slots",
    "(Tensor(a!) keys, Tensor(b!) values, Tensor slots, Tensor key_states, Tensor value_states) -> ()",
)
torch.library.impl("eagle::write_slots", "CompositeExplicitAutograd")(_write_slots)
torch.library.register_fake("eagle::write_slots")(_write_nothing)


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

    def memory(self) -> Memory:
        """What is committed, where it lies."""
        return Memory.of(self.tree_layers, self.committed)

    def recall(self, memory: Memory) -> None:
        """Be as after the tokens that something remembered is of; of an empty cache of the same model."""
        for layer, (keys, values) in zip(self.tree_layers, memory.states, strict=True):
            layer.update(keys, values)
        self._commit(memory.known)

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

    def written(self, nodes: int) -> None:
        """``nodes`` tokens were written behind what is committed, in all layers."""
        self._fill(self.committed + nodes)

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
        self._fill(length)

    def _fill(self, length: int) -> None:
        for layer in self.tree_layers:
            layer.length = length


def lasting(positions: int) -> int:
    """Positions that a cache is given whose memory should serve longer texts, too: a power of two."""
    return max(LASTING, 1 << (positions - 1).bit_length())


def _kind(states: Tensor) -> tuple[object, ...]:
    """What makes two tensors of states interchangeable, whatever their number of positions."""
    return (*states.shape[:2], states.shape[-1], states.dtype, states.device)


def _round_up(positions: int) -> int:
    return -(-positions // VIEW_STEP) * VIEW_STEP
