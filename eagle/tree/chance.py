"""Where the sampled tokens of a tree come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent, wide_dtype
from eagle.tree.drawing import draw_rows, uniforms
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper


@dataclass(frozen=True)
class Chance:
    """Where sampled children come from.

    Attributes:
        law: (k, D) logits -> (k, D) probabilities, warped like the target's, in memory of their own; None: their
            softmax.
        choose: (k, D) weights -> (k,) int64, in each row a column drawn with probability proportional to its weight;
            any column in a row without weight.
    """

    law: Callable[[Tensor], Tensor] | None
    choose: Callable[[Tensor], Tensor]

    def of(self, logits: Tensor) -> Tensor:
        """(k, D) logits -> (k, D) probabilities, the laws of samples; float32, float64 for float64 logits."""
        if self.law is not None:
            return self.law(logits)
        return logits.softmax(-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def chance(shape: TreeShape, warper: Warper, generator: torch.Generator | None) -> Chance | None:
    """How the samples of a tree are drawn in a text: from laws warped like the target's.

    Args:
        shape: of the trees, for the temperature at hand.
        warper: the target's.
        generator: source of randomness.

    Returns:
        None where nothing is sampled.
    """
    if shape.sampling is None or not shape.sampling.samples:
        return None

    def choose(weights: Tensor) -> Tensor:
        points = uniforms(len(weights), generator)
        return draw_rows(weights, sent(points, weights.device, wide_dtype(weights.device)))

    law = warper.tempered(shape.sampling.draft_temperature)
    return Chance(None if law.plain else law, choose)
