"""Drawing tokens by inversion, from uniform numbers that a seed gives on every device alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from eagle.devices import wide_dtype

# Columns that are summed at once in drawing from long rows; how many of all rows are few for a CPU, and how many of one
# row are for a GPU, where running sums of a row are of one block of threads.
BLOCK, AT_ONCE, AT_ONCE_ON_A_GPU = 64, 1 << 17, 1 << 11


def uniforms(count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` draws from [0, 1) in double precision, so that a seed means the same on every device.

    Args:
        count: how many.
        generator: source of randomness; None is torch's global CPU generator.

    Returns:
        (count,) on the generator's device.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(count, generator=generator, dtype=wide_dtype(device), device=device)


def draw(weights: Tensor, uniform: float) -> Tensor:
    """Draw an index with probability proportional to its weight.

    Args:
        weights: (V,) non-negative, not necessarily normalised, of positive sum.
        uniform: a draw from [0, 1).

    Returns:
        () int64 on the device of ``weights``; never an index of weight zero.
    """
    return _reached(weights[None], uniform * _below(wide_dtype(weights.device)))[0][0, 0]


def draw_rows(weights: Tensor, points: Tensor) -> Tensor:
    """Draw a column in each row with probability proportional to its weight, by inversion.

    Args:
        weights: (k, D) non-negative, not necessarily normalised.
        points: (k,) draws from [0, 1) in double precision, see ``uniforms``.

    Returns:
        (k,) int64; a column of weight zero only in rows that have no other.
    """
    return draw_at(weights, shares_of(points)[:, None])[0][:, 0]


def shares_of(points: Tensor) -> Tensor:
    """Draws from [0, 1) in the widest dtype of their device -> what they are worth to ``draw_at``."""
    return points * _below(points.dtype)


def _below(wide: torch.dtype) -> float:
    """A point that rounds to a total would lie behind the last token."""
    return 1.0 - 4 * torch.finfo(wide).eps


def draw_at(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a column in each row by inversion, given what is drawn from.

    Args:
        weights: as of ``draw_rows``.
        shares: (k, 1) see ``shares_of``.

    Returns:
        As ``draw_rows``, (k, 1); and (k, 1) the weight of each row, in the wide dtype.
    """
    columns, mass = _reached(weights, shares)
    return columns.clamp_(max=weights.shape[-1] - 1), mass


def _reached(weights: Tensor, shares: Tensor | float) -> tuple[Tensor, Tensor]:
    """The column of each row at which so large a share of its weight is reached, by running sums in double precision.

    Where the device has none, or on a CPU, where such sums of long rows take longer than all else, first a block of
    columns is found, then a column in it. In a running sum as long as a row the roundings of float32 would add up to
    1e-4 in total variation; sums of blocks lose nothing like that.

    Args:
        weights: as of ``draw_rows``.
        shares: (k, 1) see ``shares_of``; a number: the same for all rows.

    Returns:
        (k, 1) int64, at least D where a row has no weight, and (k, 1) the weight of each row, in the wide dtype.
    """
    width, wide = weights.shape[-1], wide_dtype(weights.device)
    few = weights.numel() <= AT_ONCE if weights.device.type == "cpu" else width <= AT_ONCE_ON_A_GPU
    if wide == torch.float64 and few:
        ends = weights.cumsum(-1, dtype=wide)
        mass = ends[:, -1:]
        return torch.searchsorted(ends, mass * shares, right=True), mass
    filled = functional.pad(weights, (0, -width % BLOCK)) if width % BLOCK else weights
    blocks = filled.unflatten(-1, (-1, BLOCK))
    ends = blocks.sum(-1).to(wide).cumsum(-1)
    mass = ends[:, -1:]
    point = mass * shares
    block = torch.searchsorted(ends, point, right=True).clamp_(max=ends.shape[-1] - 1)
    inside = blocks[torch.arange(len(weights), device=weights.device), block[:, 0]].to(wide).cumsum(-1)
    total = inside[:, -1:]
    # The sums of a block and up to it are rounded each in its own way.
    point = (point - ends.gather(1, block) + total).clamp_(min=0.0).minimum(total * _below(wide))
    column = torch.searchsorted(inside, point, right=True)
    return block * BLOCK + column, mass
