"""Benchmark questions: FastChat's and EAGLE's JSON lines, and GSM8K's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.data.jsonl import IDS, is_text, parsed
from eagle.errors import InputError

GSM8K_CATEGORY = "math"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        question_id: unique in its file.
        turns: the user's messages, in order.
        category: what it is about; None where the file does not say.
        reference: correct answers, one a turn, the first where there are several; None where the file has none.
    """

    question_id: int | str
    turns: tuple[str, ...]
    category: str | None = None
    reference: tuple[str, ...] | None = None


def load_questions(file: Path, begin: int | None = None, end: int | None = None) -> list[Question]:
    """Read questions, ``begin`` to ``end`` (exclusive) by line as FastChat counts them, blank lines left out.

    A line is ``{"question_id", "turns"}`` with an optional ``"category"`` and ``"reference"``, or GSM8K's
    ``{"question", "answer"}``, whose id is its place in the file, from 0 on.

    Raises:
        InputError: the file cannot be read, holds no questions in that range, or a line is malformed (names it).
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the question file {file}: {error}") from error
    questions: list[Question] = []
    # Only newlines end a record: splitlines() would also split at characters that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            questions.append(_parse(line, len(questions), f"{file}, line {number}"))
    seen: set[int | str] = set()
    for question in questions:
        if question.question_id in seen:
            raise InputError(f"{file}: question_id {question.question_id!r} occurs twice")
        seen.add(question.question_id)
    chosen = questions[begin:end]
    if not chosen:
        raise InputError(f"{file}: no questions in the range {begin}:{end} (the file has {len(questions)})")
    return chosen


def _parse(line: str, place: int, where: str) -> Question:
    try:
        fields: Any = parsed(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: not a JSON object")
    if "turns" not in fields and {"question", "answer"} <= fields.keys():
        fields = {
            "question_id": place,
            "turns": [fields["question"]],
            "category": GSM8K_CATEGORY,
            "reference": [fields["answer"]],
        }
    question_id, turns = fields.get("question_id"), fields.get("turns")
    if not isinstance(question_id, int | str) or isinstance(question_id, bool):
        raise InputError(f"{where}: 'question_id' must be a number or a string, not {question_id!r}")
    if isinstance(question_id, int) and question_id not in IDS:
        raise InputError(f"{where}: 'question_id' has more than 64 bits; write it as a string, in quotes")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: 'turns' must be a non-empty list of texts")
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise InputError(f"{where}: every turn must be a non-empty text, not {turn!r}")
    category = fields.get("category")
    if category is not None and not isinstance(category, str):
        raise InputError(f"{where}: 'category' must be a text, not {category!r}")
    reference = fields.get("reference")
    if isinstance(reference, list) and all(isinstance(texts, list) for texts in reference):
        # Spec-Bench's rag: several answers are right, of which the first stands for all.
        reference = [texts[0] if texts else "" for texts in reference]
    if reference is not None and not (isinstance(reference, list) and all(isinstance(text, str) for text in reference)):
        raise InputError(f"{where}: 'reference' must be a list of texts, not {reference!r}")
    for name, texts in (
        *(("question_id", [str(question_id)]), ("category", [category or ""])),
        *(("turns", turns), ("reference", reference or [])),
    ):
        if not all(map(is_text, texts)):
            raise InputError(
                f"{where}: {name!r} holds half of a surrogate pair (such as \\ud83d alone), which is no character; put "
                "the whole character there"
            )
    return Question(question_id, tuple(turns), category, None if reference is None else tuple(reference))


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """So many of the questions, or all, evenly spread."""
    count = min(count, len(questions))
    return [questions[place * len(questions) // count] for place in range(count)]
