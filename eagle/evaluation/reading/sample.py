"""How each token of an answer came: drafted and accepted, at which depth, or of the target itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from eagle.data.jsonl import BOM
from eagle.evaluation.answering.records import RunFiles
from eagle.evaluation.reading.lines import is_unanswered


@dataclass(frozen=True)
class Piece:
    """The text of one token.

    Attributes:
        text: its characters; a token that completes no character has none.
        depth: in the draft tree, from 1; None for a token that the target added itself.
        round: that emitted it, from 1; 0 is the prefill.
    """

    text: str
    depth: int | None
    round: int


@dataclass(frozen=True)
class Sample:
    """An answer in pieces: the first choice of a question, turn by turn."""

    question_id: int | str
    turns: tuple[tuple[Piece, ...], ...]


def pieces(text: str, token_ends: Sequence[int], accept_length: Sequence[int]) -> tuple[Piece, ...]:
    """Split a turn into its tokens.

    Args:
        text: of the turn.
        token_ends: for each new token where in the text its characters end.
        accept_length: for each round the draft tokens accepted.

    Raises:
        ValueError: these do not belong together.
    """
    origins: list[tuple[int | None, int]] = [(None, 0)]
    for number, accepted in enumerate(accept_length, start=1):
        origins += [(depth, number) for depth in range(1, accepted + 1)]
        origins.append((None, number))
    # The last round may be cut before the target's own token.
    if len(token_ends) not in (len(origins), len(origins) - 1):
        raise ValueError(f"{len(token_ends)} tokens, but {len(accept_length)} rounds that emit {len(origins)}")
    starts = [0, *token_ends]
    if starts != sorted(starts) or starts[-1] != len(text):
        raise ValueError("the ends of the tokens are not ends in this text")
    return tuple(
        Piece(text[start:end], depth, number)
        for start, end, (depth, number) in zip(starts[:-1], token_ends, origins[: len(token_ends)], strict=True)
    )


def find_sample(answers: Path, question_id: int | str | None = None) -> Sample | None:
    """The first answer of a run that can be shown in pieces.

    Args:
        answers: file of the answers.
        question_id: only this one's; None is any.

    Returns:
        None where the run has none: older files do not tell where tokens end.
    """
    files = RunFiles.beside(answers)
    for info in _records(files.info):
        asked = info.get("question_id")
        if asked is None or info.get("choice_index", 0) != 0 or "token_ends" not in info:
            continue
        if question_id not in (None, asked):
            continue
        for answer in _records(files.answers):
            if answer.get("question_id") == asked:
                try:
                    choice = answer["choices"][0]
                    if is_unanswered(choice):
                        break
                    texts = choice["turns"]
                    turns = zip(texts, info["token_ends"], info["accept_length"], strict=True)
                    return Sample(asked, tuple(pieces(*turn) for turn in turns))
                except (ValueError, KeyError, IndexError, TypeError):
                    # Not to be shown in pieces; another one may be.
                    break
    return None


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The lines that hold an object; those that do not were named when the run was read."""
    with file.open("rb") as source:
        for line in source:
            try:
                record = orjson.loads(line.removeprefix(BOM))
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record
