"""What is trained: the head unrolled over a batch, its losses, and their means."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from eagle.devices import wide_dtype
from eagle.drafters.eagle3.head import Eagle3Head
from eagle.train.batches import Batch
from eagle.train.features import Reading
from eagle.train.fit_settings import FitSettings
from eagle.train.losses import judge
from eagle.train.steps import unroll


class Trainee(nn.Module):
    """What is trained, as one module: drafting steps of a batch and their losses.

    Hidden states are of very different size: of some models their entries are around 1 in the lower layers, around 10
    in the upper ones, and in the hundreds at a few places. Steps of Adam are of one size, so the weights of ``fc`` are
    trained in units of the entries they multiply.

    Args:
        head: the head; from now on its ``fc`` is in training units.
        settings: of the run.
        units: (k * H,) powers of two, so that going to training units and back changes no bit; None: all are 1.
    """

    units: Tensor

    def __init__(self, head: Eagle3Head, settings: FitSettings, units: Tensor | None = None) -> None:
        super().__init__()
        self.head, self.settings = head, settings
        weight = head.fc.weight
        self.register_buffer("units", weight.new_ones(weight.shape[1]) if units is None else units.to(weight))
        with torch.no_grad():
            weight.mul_(self.units)

    @contextlib.contextmanager
    def in_units_of_the_target(self) -> Iterator[Eagle3Head]:
        """The head as it drafts, to be written."""
        weight = self.head.fc.weight
        with torch.no_grad():
            weight.div_(self.units)
            yield self.head
            weight.mul_(self.units)

    def forward(self, batch: Batch, reading: Reading, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Loss and sums of a batch.

        Args:
            batch: R rows.
            reading: what the target says of it.
            counts: what the loss of each drafting step is divided by: its rows in the whole optimizer step.

        Returns:
            The loss, (); and (5, drafting steps) float64 sums over rows, see ``Tally``.
        """
        narrow = self.settings.mixed_precision == "bf16"
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=narrow):
            return self._forward(batch, reading, counts)

    def _forward(self, batch: Batch, reading: Reading, counts: list[int]) -> tuple[Tensor, Tensor]:
        settings = self.settings
        outputs = unroll(self.head, batch, reading.features / self.units, settings.drafting_steps)
        # A row drafts as far as its document has tokens.
        reaching = [(batch.rows + 2 + k <= batch.ends).nonzero()[:, 0] for k in range(len(outputs))]
        sizes = [len(rows) for rows in reaching]
        weights = [settings.decay**k / max(1, count) for k, count in enumerate(counts)]
        judged = judge(
            torch.cat([output[rows] for output, rows in zip(outputs, reaching, strict=True)]),
            self.head.lm_head.weight,
            reading,
            torch.cat([rows + k for k, rows in enumerate(reaching)]),
            torch.cat([reading.law.new_full((size,), w) for size, w in zip(sizes, weights, strict=True)]),
            settings.loss_of_rows,
        )
        wide = wide_dtype(judged.losses.device)
        losses, hits, overlaps = (
            torch.stack([part.sum() for part in values.to(wide).split(sizes)])
            for values in (judged.losses, judged.hits, judged.overlaps)
        )
        chains = torch.zeros(len(outputs), len(batch.rows), dtype=wide, device=losses.device)
        for k, (rows, part) in enumerate(zip(reaching, judged.overlaps.to(wide).split(sizes), strict=True)):
            chains[k, rows] = part
        lengths = chains.cumprod(0).sum(-1)
        return judged.total, torch.stack([losses, hits, overlaps, lengths, losses.new_tensor(sizes)])


@dataclass(frozen=True)
class Tally:
    """Means over rows, for each drafting step.

    Attributes:
        loss: of the kind that is trained.
        top1: how often the most likely token is the target's.
        overlap: sum min(p, q), how often a sampled token is accepted.
        accepted: expected accepted length of a chain along the answers: the sum over the steps of the mean product of
            overlaps up to each.
    """

    loss: list[float]
    top1: list[float]
    overlap: list[float]
    accepted: float

    @property
    def finite(self) -> bool:
        """Whether all of them are numbers, and not infinite."""
        return all(map(math.isfinite, chain(self.loss, self.top1, self.overlap, [self.accepted])))

    @classmethod
    def of(cls, sums: Tensor) -> Tally:
        """From (5, drafting steps) sums of losses, hits, overlaps and products of overlaps, and numbers of rows."""
        loss, hits, overlaps, lengths = (sums[:4] / sums[4].clamp(min=1)).tolist()
        return cls(loss, hits, overlaps, sum(lengths))
