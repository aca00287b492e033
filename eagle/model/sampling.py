"""From logits to the law that tokens are drawn from, and drawing from it.

The warpers and their order (temperature, top_k, top_p) are those of ``transformers.generate``, so a run here samples
from what the same settings mean there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eagle.errors import InputError


class Warper:
    """The warping of logits that a set of sampling parameters means.

    Args:
        temperature: 0 is greedy; larger is flatter.
        top_p: keep the smallest set of most likely tokens whose mass reaches this; 0 and 1 mean off.
        top_k: keep the k most likely tokens; 0 means off.

    Raises:
        InputError: a parameter is out of its range or not a number.
    """

    def __init__(self, temperature: float, top_p: float = 0.0, top_k: float = 0.0) -> None:
        if not math.isfinite(temperature) or temperature < 0:
            raise InputError(f"temperature must be a finite number, 0 or more, not {temperature}")
        if not 0.0 <= top_p <= 1.0:
            raise InputError(f"top_p must lie in [0, 1], not {top_p}")
        if not math.isfinite(top_k) or top_k < 0 or top_k != int(top_k):
            raise InputError(f"top_k must be a whole number, 0 or more, not {top_k}")
        self.greedy = temperature == 0.0
        self._warpers = LogitsProcessorList()
        if not self.greedy:
            if temperature != 1.0:
                self._warpers.append(TemperatureLogitsWarper(temperature))
            if top_k:
                self._warpers.append(TopKLogitsWarper(int(top_k)))
            if 0.0 < top_p < 1.0:
                self._warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities of the next token.

        Args:
            logits: (N, V), any floating dtype.

        Returns:
            (N, V) probabilities, float32 (float64 for float64 logits). With ``temperature=0`` the logits themselves:
            a greedy rule looks only for the largest entry. A row with NaN or +inf stays NaN, for the rule to report.
        """
        if self.greedy:
            return logits
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return self._warpers(None, wide).softmax(dim=-1)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype of ratios and masses: float64 where the device has it (MPS has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def uniforms(count: int, generator: torch.Generator | None) -> list[float]:
    """``count`` draws from [0, 1) on the host, in double precision, so that a seed means the same on every device.

    Args:
        count: how many.
        generator: source of randomness; None is torch's global CPU generator.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(count, generator=generator, dtype=wide_dtype(device), device=device).tolist()


def draw(weights: Tensor, uniform: float) -> Tensor:
    """Draw an index with probability proportional to its weight, by inversion.

    Args:
        weights: (V,) non-negative, not necessarily normalised, of positive sum.
        uniform: a draw from [0, 1).

    Returns:
        () int64 on the device of ``weights``; never an index of weight zero.
    """
    cumulative = weights.to(wide_dtype(weights.device)).cumsum(0)
    total = cumulative[-1]
    # The first entry above a point below the total has positive weight; rounding may lift u * total to the total.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)
