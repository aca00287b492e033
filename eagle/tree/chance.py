"""Where the sampled tokens of a tree come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent, wide_dtype
from eagle.tree.drawing import draw_at, shares_of, uniforms
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper

Choose = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(k, D) weights -> (k, 1) int64, in each row a column drawn with probability proportional to its weight, any column in
a row without weight; and (k, 1) the weight of all columns of each row."""


@dataclass(frozen=True)
class Chance:
    """Where sampled children come from.

    Attributes:
        law: (k, D) logits -> (k, D) probabilities, warped like the target's, in memory of their own; None: their
            softmax.
        choices: what chooses in the rows of one tree, of which there are so many at most.
    """

    law: Callable[[Tensor], Tensor] | None
    choices: Callable[[int], Choose]

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

    law = warper.tempered(shape.sampling.draft_temperature)
    return Chance(None if law.plain else law, lambda rows: Choices(uniforms(rows, generator)))


class Choices:
    """See ``Choose``; the numbers of a whole tree are made and sent at once.

    Args:
        points: draws from [0, 1), one for each row that will be asked about.
    """

    def __init__(self, points: Tensor) -> None:
        self.points, self._used = points, 0
        self._shares: Tensor | None = None

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Choose``."""
        if self._shares is None:
            self._shares = shares_of(sent(self.points, weights.device, wide_dtype(weights.device)))[:, None]
        first, self._used = self._used, self._used + len(weights)
        return draw_at(weights, self._shares[first : self._used])
