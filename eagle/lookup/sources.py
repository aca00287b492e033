"""What databases of look-up are made of: answers of a model, conversations, any text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle.data.conversations import HUB, read_records
from eagle.errors import InputError
from eagle.train.answers import ANSWERS, read_answers

SHAREGPT = "sharegpt"
JSON = (".json", ".jsonl", ".ndjson")

Piece = str | list[int]
"""A text, or the token ids of one."""


def pieces(source: str) -> Iterator[Piece]:
    """The texts of a source, one after the other.

    Args:
        source: a folder of answers that ``eagle.train generate`` wrote, of which the answers are taken; a file of JSON
            lines or of one JSON array, or a data set ``hf:owner/name[/config][:split][:column]``, of whose records
            every text of more than one word is taken; ``sharegpt``; or a file of plain text, whose paragraphs are.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(source)
    if source == SHAREGPT or source.startswith(HUB) or path.suffix in JSON:
        for _, record in read_records(None if source == SHAREGPT else source):
            yield from _texts(record)
    elif path.is_dir():
        # Its own folder, or the one that the stages of a training share.
        for answer in read_answers(path / ANSWERS if (path / ANSWERS).is_dir() else path):
            yield answer.answer
    else:
        yield from _paragraphs(path)


def _texts(record: Any) -> Iterator[str]:
    if isinstance(record, str):
        if len(record.split(maxsplit=1)) > 1:
            yield record
    elif isinstance(record, dict | list):
        for part in record.values() if isinstance(record, dict) else record:
            yield from _texts(part)


def _paragraphs(file: Path) -> Iterator[str]:
    paragraph: list[str] = []
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    paragraph.append(line)
                elif paragraph:
                    yield "".join(paragraph)
                    paragraph = []
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    if paragraph:
        yield "".join(paragraph)
