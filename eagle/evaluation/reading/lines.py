"""The lines of a run's files, checked and turned into numbers as they are read.

A line that is malformed, or cut off because a run was killed while writing it, is named on standard error and skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from eagle.data.jsonl import BOM
from eagle.errors import InputError
from eagle.evaluation.answering.records import UNANSWERED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Of each file so many bad lines are named; that there are more is said.
NAMED = 5
COUNTS = ("accept_length", "draft_length")
# No path of a draft tree is so long.
LONGEST = 10_000
TIMES = ("tree_time", "eval_time", "update_time")
_Line = TypeVar("_Line")


@dataclass(frozen=True)
class Choice:
    """One answer to a question.

    Attributes:
        turns: how many.
        new_tokens: of all turns.
        wall_time: seconds of all turns.
        unanswered: a turn of it could not be answered.
    """

    turns: int
    new_tokens: int
    wall_time: float
    unanswered: bool = False


@dataclass(frozen=True)
class Answer:
    """A line of an answers file: the choices of a question by their index."""

    question_id: int | str
    choices: dict[int, Choice]


@dataclass(frozen=True)
class Info:
    """A line of an info file, all turns of a choice together.

    Attributes:
        question_id: None in the files of the published code, whose lines follow the answers' order.
        choice_index: of the choice.
        category: of the question, where known.
        turns: how many.
        generate_time: seconds.
        reset_tree_time: seconds.
        first_draft_time: seconds of each turn's first draft, which lie in ``reset_tree_time``; None if not recorded.
        rounds: an array with an entry per round for each of ``COUNTS`` (int64) and ``TIMES`` (float64, seconds), and
            for ``draft_time`` if it was recorded.
    """

    question_id: int | str | None
    choice_index: int
    category: str | None
    turns: int
    generate_time: float
    reset_tree_time: float
    first_draft_time: float | None
    rounds: dict[str, NDArray[Any]]


def read_lines(file: Path, parse: Callable[[dict[str, Any]], _Line]) -> tuple[list[_Line | None], int]:
    """Read a JSON-lines file, one line in memory at a time.

    Args:
        file: to read; blank lines are passed over.
        parse: makes of an object what is kept of it, or raises ``ValueError``.

    Returns:
        An entry per line, None for one that was skipped, and how many were.

    Raises:
        InputError: the file cannot be read.
    """
    kept: list[_Line | None] = []
    skipped = 0
    try:
        with file.open("rb") as source:
            for number, line in enumerate(source, start=1):
                if number == 1:
                    line = line.removeprefix(BOM)
                if not line or line.isspace():
                    continue
                try:
                    kept.append(parse(_object(line)))
                except ValueError as error:
                    kept.append(None)
                    skipped += 1
                    if skipped <= NAMED:
                        print(f"{file}, line {number}: {error}; skipped", file=sys.stderr)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    if skipped > NAMED:
        print(f"{file}: {skipped - NAMED} more lines skipped", file=sys.stderr)
    return kept, skipped


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError("not valid JSON" if line.endswith(b"\n") else f"cut off ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def parse_answer(record: dict[str, Any]) -> Answer:
    """Check a line of an answers file.

    Raises:
        ValueError: it is not one.
    """
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError("no line of answers ('choices' is missing)")
    parsed = {}
    for place, choice in enumerate(choices):
        new_tokens, wall_time = _array(choice, "new_tokens", whole=True), _array(choice, "wall_time")
        if len(new_tokens) != len(wall_time):
            raise ValueError("'new_tokens' and 'wall_time' have different numbers of turns")
        parsed[_index(choice, "index", place)] = Choice(
            len(new_tokens), int(new_tokens.sum()), float(wall_time.sum()), is_unanswered(choice)
        )
    return Answer(_question_id(record), parsed)


def is_unanswered(choice: dict[str, Any]) -> bool:
    """Whether a choice of an answers file says of a turn that it could not be answered."""
    reasons = choice.get(UNANSWERED)
    return isinstance(reasons, list) and any(reason is not None for reason in reasons)


def parse_info(record: dict[str, Any]) -> Info:
    """Check a line of an info file.

    Raises:
        ValueError: it is not one.
    """
    generate_time = _array(record, "generate_time")
    reset_tree_time = _array(record, "reset_tree_time")
    lengths = _turn_lengths(record, "accept_length")
    if not len(generate_time) == len(reset_tree_time) == len(lengths):
        raise ValueError("'generate_time', 'reset_tree_time' and 'accept_length' have different numbers of turns")
    recorded = (*COUNTS, *TIMES, "draft_time") if "draft_time" in record else (*COUNTS, *TIMES)
    rounds: dict[str, NDArray[Any]] = {}
    for key in recorded:
        if _turn_lengths(record, key) != lengths:
            raise ValueError(f"'{key}' and 'accept_length' have different numbers of rounds")
        rounds[key] = _numbers(list(chain.from_iterable(record[key])), key, whole=key in COUNTS)
    if (rounds["accept_length"] >= rounds["draft_length"]).any():
        raise ValueError("'accept_length' is not below 'draft_length'")
    if (rounds["draft_length"] > LONGEST).any():
        raise ValueError(f"'draft_length' is above {LONGEST}")
    first_draft_time = None
    if "draft_time" in record:
        first_draft_time = float(sum(turn[0] for turn in record["draft_time"] if turn))
    category = record.get("category")
    return Info(
        question_id=_question_id(record) if "question_id" in record else None,
        choice_index=_index(record, "choice_index", 0),
        category=category if isinstance(category, str) else None,
        turns=len(lengths),
        generate_time=float(generate_time.sum()),
        reset_tree_time=float(reset_tree_time.sum()),
        first_draft_time=first_draft_time,
        rounds=rounds,
    )


def _question_id(record: dict[str, Any]) -> int | str:
    question_id = record.get("question_id")
    if not isinstance(question_id, int | str) or isinstance(question_id, bool):
        raise ValueError(f"'question_id' must be a number or a text, not {question_id!r}")
    return question_id


def _index(record: dict[str, Any], key: str, otherwise: int) -> int:
    index = record.get(key, otherwise)
    if not isinstance(index, int):
        raise ValueError(f"'{key}' must be a whole number, not {index!r}")
    return index


def _turn_lengths(record: dict[str, Any], key: str) -> list[int]:
    turns = record.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, list) for turn in turns):
        raise ValueError(f"'{key}' is not a list of rounds for each turn")
    return list(map(len, turns))


def _array(record: dict[str, Any], key: str, whole: bool = False) -> NDArray[Any]:
    values = record.get(key)
    if not isinstance(values, list):
        raise ValueError(f"'{key}' is not a list with an entry for each turn")
    return _numbers(values, key, whole)


def _numbers(values: list[Any], key: str, whole: bool) -> NDArray[Any]:
    """A list as (n,) int64 or float64, if it holds nothing but numbers of 0 or more."""
    expected = "whole numbers" if whole else "numbers"
    try:
        array = np.asarray(values) if values else np.empty(0, np.int64)
    except ValueError:
        raise ValueError(f"'{key}' holds something other than {expected}") from None
    if array.ndim != 1 or array.dtype.kind not in ("iu" if whole else "iuf"):
        raise ValueError(f"'{key}' holds something other than {expected}")
    array = array.astype(np.int64 if whole else np.float64)
    # Above 2^63, too, a whole number is below 0 now.
    if not (array >= 0).all():
        raise ValueError(f"'{key}' holds something below 0, or too large")
    return array
