"""The additive masks under which the nodes of a tree are scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tree_masks(
    seen: Tensor, depths: Tensor, committed: int | Tensor, width: int, windows: Sequence[int | None], dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What n nodes of a tree attend to, which lies behind committed tokens in a cache.

    Args:
        seen: (n, m) bool, which of the tree's m nodes each of the last n attends to, itself included.
        depths: (m,) int64, of all m nodes, on the device of ``seen``.
        committed: tokens that all nodes attend to; a number, or () int64 on the device of ``seen``.
        width: positions of the cache that the mask is over.
        windows: of each attention layer its sliding window, None for full attention.
        dtype: of the mask.

    Returns:
        (1, 1, n, width), 0 where a node attends to a position; one for each kind of attention layer where there are
        several.
    """
    count, nodes = seen.shape
    places = torch.arange(width, device=seen.device)
    slots = torch.arange(nodes, device=seen.device) + committed
    all_seen = (places < committed).repeat(count, 1).index_copy_(1, slots, seen)
    positions = depths + committed
    return additive_masks(all_seen, positions[nodes - count :], places.index_copy(0, slots, positions), windows, dtype)


def additive_masks(
    seen: Tensor, positions: Tensor, key_positions: Tensor, windows: Sequence[int | None], dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The masks of rows that see some places of a cache.

    Args:
        seen: (n, width) bool.
        positions: (n,) int64 of the rows.
        key_positions: (width,) int64 of the places.
        windows: see ``tree_masks``, and so the last.
        dtype: see there.

    Returns:
        See there.
    """
    masks: dict[int | None, Tensor] = {}
    for window in set(windows):
        within = seen
        if window is not None:
            within = seen & (positions[:, None] - key_positions[None] < window)
        mask = torch.zeros(within.shape, dtype=dtype, device=seen.device)
        masks[window] = mask.masked_fill_(~within, torch.finfo(dtype).min)[None, None]
    if len(masks) == 1:
        return masks.popitem()[1]
    return {"full_attention" if window is None else "sliding_attention": mask for window, mask in masks.items()}
