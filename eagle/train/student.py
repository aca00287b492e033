"""What a training trains, whatever it is: its losses, what is measured of it, and how it is written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from eagle.train.batches import Batch, Document
from eagle.train.features import Reading


class Student(nn.Module, ABC):
    """What is trained, as one module. Its *columns* are the laws that a row is judged by: those of a head's drafting
    steps, or of a sorted draft's exits."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many there are."""

    @property
    @abstractmethod
    def measure(self) -> str:
        """What ``Tally.accepted`` is, for people."""

    @abstractmethod
    def rows_of(self, documents: Sequence[Document]) -> list[int]:
        """Rows of documents that reach each column."""

    @abstractmethod
    def forward(self, batch: Batch, reading: Reading, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Loss and sums of a batch.

        Args:
            batch: R rows.
            reading: what the target says of it.
            counts: what the loss of each column is divided by: its rows in the whole optimizer step.

        Returns:
            The loss, (); and (5, columns) float64 sums over rows, see ``Tally``.
        """

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write it, as it drafts, into a folder.

        Raises:
            OSError: the disk refused.
        """

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Take the weights that ``write`` wrote.

        Raises:
            OSError: it cannot be read.
            KeyError: something is missing.
            RuntimeError: something does not fit.
        """


@dataclass(frozen=True)
class Tally:
    """Means over rows, for each column.

    Attributes:
        loss: of the kind that is trained.
        top1: how often the most likely token is the target's.
        overlap: sum min(p, q), how often a sampled token is accepted.
        accepted: what checkpoints are compared by. Of a head the expected accepted length of a chain along the
            answers: the sum over the steps of the mean product of overlaps up to each.
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
        """From (5, columns) sums of losses, hits, overlaps and what makes up ``accepted``, and numbers of rows."""
        loss, hits, overlaps, lengths = (sums[:4] / sums[4].clamp(min=1)).tolist()
        return cls(loss, hits, overlaps, sum(lengths))
