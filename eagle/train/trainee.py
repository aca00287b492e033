"""A head in training: unrolled over a batch, and its losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from eagle.devices import wide_dtype
from eagle.drafters.eagle3.head import Eagle3Head
from eagle.drafters.eagle3.writing import OFFICIAL, write_head
from eagle.folders import WEIGHT_NAMES
from eagle.target.target import Target
from eagle.train.batches import Batch, Document
from eagle.train.features import Reading
from eagle.train.fit_settings import FitSettings
from eagle.train.losses import judge
from eagle.train.steps import unroll
from eagle.train.student import Student


class Trainee(Student):
    """A head in training: drafting steps of a batch and their losses.

    Hidden states are of very different size: of some models their entries are around 1 in the lower layers, around 10
    in the upper ones, and in the hundreds at a few places. Steps of Adam are of one size, so the weights of ``fc`` are
    trained in units of the entries they multiply.

    Args:
        head: the head; from now on its ``fc`` is in training units.
        settings: of the run.
        target: that it drafts for; needed for writing it.
        units: (k * H,) powers of two, so that going to training units and back changes no bit; None: all are 1.
    """

    units: Tensor

    def __init__(
        self, head: Eagle3Head, settings: FitSettings, units: Tensor | None = None, target: Target | None = None
    ) -> None:
        super().__init__()
        self.head, self.settings = head, settings
        # Not a part of it, which a plain attribute would make it.
        self._target = [target]
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

    @property
    def columns(self) -> int:
        """See ``Student.columns``: drafting steps."""
        return self.settings.drafting_steps

    @property
    def measure(self) -> str:
        """See ``Student.measure``."""
        return f"accepted along a chain of {self.columns}"

    def rows_of(self, documents: Sequence[Document]) -> list[int]:
        """See ``Student.rows_of``."""
        return [sum(document.rows_at(k) for document in documents) for k in range(self.columns)]

    def write(self, folder: Path) -> None:
        """See ``Student.write``: in the official layout."""
        (target,) = self._target
        if target is None:
            raise ValueError("a head is written for its target")
        with self.in_units_of_the_target() as head:
            write_head(head, target, folder, OFFICIAL, head.fc.weight.dtype)

    def read(self, folder: Path) -> None:
        """See ``Student.read``."""
        state = load_file(folder / WEIGHT_NAMES[0])
        with self.in_units_of_the_target() as head:
            head.load_state_dict({key: state[key] for key in head.state_dict()})

    def forward(self, batch: Batch, reading: Reading, counts: list[int]) -> tuple[Tensor, Tensor]:
        """See ``Student.forward``."""
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
