"""Benchmark questions in FastChat's JSONL format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.errors import InputError


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        question_id: unique in its file.
        turns: the user's messages, in order.
        category: what it is about; None where the file does not say.
    """

    question_id: int | str
    turns: tuple[str, ...]
    category: str | None = None


def load_questions(file: Path, begin: int | None = None, end: int | None = None) -> list[Question]:
    """Read questions, ``begin`` to ``end`` (exclusive) by line as FastChat counts them, blank lines left out.

    Raises:
        InputError: the file cannot be read, holds no questions in that range, or a line is malformed (names it).
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the question file {file}: {error}") from error
    questions = [_parse(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    seen: set[int | str] = set()
    for question in questions:
        if question.question_id in seen:
            raise InputError(f"{file}: question_id {question.question_id!r} occurs twice")
        seen.add(question.question_id)
    chosen = questions[begin:end]
    if not chosen:
        raise InputError(f"{file}: no questions in the range {begin}:{end} (the file has {len(questions)})")
    return chosen


def _parse(line: str, where: str) -> Question:
    try:
        fields: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: not a JSON object")
    question_id, turns = fields.get("question_id"), fields.get("turns")
    if not isinstance(question_id, int | str) or isinstance(question_id, bool):
        raise InputError(f"{where}: 'question_id' must be a number or a string, not {question_id!r}")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: 'turns' must be a non-empty list of texts")
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise InputError(f"{where}: every turn must be a non-empty text, not {turn!r}")
    category = fields.get("category")
    if category is not None and not isinstance(category, str):
        raise InputError(f"{where}: 'category' must be a text, not {category!r}")
    return Question(question_id, tuple(turns), category)
