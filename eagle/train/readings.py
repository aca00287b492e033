"""What the target says of documents, kept on disk: later epochs do not ask it again.

A law over the vocabulary would take tens of kilobytes a token; a hidden state takes one or two, and its product with
the draft vocabulary's rows of ``lm_head`` costs no more than the head's own. The file is a log: a document's number,
then its states. What a killed run left of a last document is cut off, so a run that goes on finds what it had read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from eagle.errors import InputError
from eagle.train.batches import Batch, Document
from eagle.train.features import Reader, Reading, States

NUMBER_BYTES = 8


class KeptReadings:
    """Readings of a fixed sequence of documents; each is read by the target once.

    Args:
        reader: asks the target.
        documents: by their indices they are kept.
        file: of the states; made if it is not there.

    Raises:
        InputError: the file cannot be read or written.
    """

    def __init__(self, reader: Reader, documents: Sequence[Document], file: Path) -> None:
        self._reader, self._documents, self._file = reader, documents, file
        target = reader.target
        hidden = target.embedding.shape[1]
        # In the order of the states: the first has an entry for each token, the others for each row.
        self._widths = (len(target.feature_layers) * hidden, hidden, 1, 1)
        self._dtypes = (target.dtype, target.dtype, torch.int64, reader.wide)
        self._places: dict[int, int] = {}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._log = file.open("a+b")
            self._find()
        except OSError as error:
            raise InputError(f"cannot keep readings in {file}: {error}") from error

    def read(self, batch: Batch, indices: Sequence[int]) -> Reading:
        """Features and laws of a batch, on its device.

        Args:
            batch: of the documents.
            indices: of these documents, in the batch's order.

        Raises:
            InputError: the disk refused, or see ``Reader.states``.
        """
        device = batch.tokens.device
        if any(index not in self._places for index in indices):
            self._keep(self._reader.states(batch), batch, indices)
        # Read back even what has just been written: a document's reading is the same in every epoch and after a kill.
        parts = [self._load(index) for index in indices]
        states = States(
            *(torch.cat([getattr(part, each.name) for part in parts]).to(device) for each in fields(States))
        )
        return self._reader.reading(states)

    def _shapes(self, index: int) -> list[tuple[int, int]]:
        document = self._documents[index]
        return list(zip((len(document.tokens), *(document.rows,) * 3), self._widths, strict=True))

    def _size(self, index: int) -> int:
        return sum(n * m * dtype.itemsize for (n, m), dtype in zip(self._shapes(index), self._dtypes, strict=True))

    def _find(self) -> None:
        """Where each document is; a torn one at the end is cut off."""
        end, place = os.fstat(self._log.fileno()).st_size, 0
        while place + NUMBER_BYTES <= end:
            index = int.from_bytes(os.pread(self._log.fileno(), NUMBER_BYTES, place), "little")
            if index >= len(self._documents):
                raise InputError(f"{self._file} belongs to other answers; remove it")
            following = place + NUMBER_BYTES + self._size(index)
            if following > end:
                break
            self._places[index] = place + NUMBER_BYTES
            place = following
        self._log.truncate(place)

    def _keep(self, states: States, batch: Batch, indices: Sequence[int]) -> None:
        features = states.features.split(batch.lengths)
        by_row = (states.hidden, states.favourite, states.log_norm)
        rows = zip(*(each.split(batch.counts) for each in by_row), strict=True)
        try:
            for index, feature, row in zip(indices, features, rows, strict=True):
                if index in self._places:
                    continue
                place = os.fstat(self._log.fileno()).st_size
                self._log.write(index.to_bytes(NUMBER_BYTES, "little") + b"".join(_bytes([feature, *row])))
                self._log.flush()
                self._places[index] = place + NUMBER_BYTES
        except OSError as error:
            raise InputError(
                f"cannot keep readings in {self._file}: {error}; make room, and the same command resumes"
            ) from error

    def _load(self, index: int) -> States:
        data = bytearray(self._size(index))
        read = os.preadv(self._log.fileno(), [data], self._places[index])
        if read != len(data):
            raise InputError(f"{self._file} has been cut off; remove it, and the same command reads anew")
        tensors, place = [], 0
        for (n, m), dtype in zip(self._shapes(index), self._dtypes, strict=True):
            if m == 0:
                tensors.append(torch.empty(n, 0, dtype=dtype))
                continue
            tensor = torch.frombuffer(data, dtype=dtype, count=n * m, offset=place)
            tensors.append(tensor.view(n, m) if m > 1 else tensor)
            place += n * m * dtype.itemsize
        return States(*tensors)


def _bytes(tensors: Iterable[Tensor]) -> Iterable[bytes]:
    for tensor in tensors:
        yield tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()
