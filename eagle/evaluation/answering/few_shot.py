"""Exemplars before a question: few-shot prompting in one user turn, as the HSD paper asks GSM8K (8 exemplars)."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from eagle.errors import InputError
from eagle.evaluation.answering.layouts import FASTCHAT

OPTION = "--few-shot"
QUESTION = "Question:"
FIELD, RECORDED = "few_shot", "few_shot_sha256"
"""Name of the exemplars' text in the settings, and of its SHA-256 in what a run records."""
LATER = {"keep_context": False, "layout": FASTCHAT, "min_p": 0.0, "repetition_penalty": None, "stop": ()}
"""Settings that there were not from the start, as they were then."""


def add_few_shot_argument(parse: argparse._ActionsContainer) -> None:
    """The argument whose value ``read_exemplars`` reads."""
    parse.add_argument(
        OPTION,
        type=Path,
        metavar="FILE",
        help=f"exemplars before every question, in its user turn: blocks of '{QUESTION} ...' and the lines of its "
        "answer, with blank lines between them; of a question with several turns only the first has them",
    )


def read_exemplars(file: Path | None) -> str | None:
    """The exemplars of a file, one blank line between two; None without a file.

    Args:
        file: UTF-8 text, blocks of ``Question: ...`` and one or more lines of answer, separated by blank lines.

    Raises:
        InputError: the file cannot be read, is no UTF-8 text or empty, or a block is not a question with its answer.
    """
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{OPTION}: {file} is not valid UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{OPTION}: cannot read {file}: {error.strerror}; name a file of exemplars") from None
    blocks = _blocks(text)
    if not blocks:
        raise InputError(f"{OPTION}: {file} is empty; write blocks of '{QUESTION} ...' and their answers into it")
    for number, lines in blocks:
        if not lines[0].startswith(QUESTION):
            raise InputError(
                f"{OPTION}: {file}, line {number}: a block of exemplars must begin with '{QUESTION}' (blank lines "
                "separate blocks, so there are none within an answer)"
            )
        if len(lines) < 2 or lines[0].strip() == QUESTION:
            raise InputError(
                f"{OPTION}: {file}, line {number}: an exemplar needs its question and, in the lines below, its answer"
            )
    return "\n\n".join("\n".join(lines) for _, lines in blocks)


def _blocks(text: str) -> list[tuple[int, list[str]]]:
    """The lines between blank lines, each block with the number of its first line."""
    blocks: list[tuple[int, list[str]]] = []
    after_blank = True
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            if after_blank:
                blocks.append((number, []))
            blocks[-1][1].append(line.rstrip())
        after_blank = not line.strip()
    return blocks


def user_turn(exemplars: str | None, question: str) -> str:
    """What the user says first: the question itself, or the exemplars and behind a blank line the question.

    Args:
        exemplars: of ``read_exemplars``.
        question: a question's first turn.
    """
    return question if exemplars is None else f"{exemplars}\n\n{QUESTION} {question}"


def recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a run records them: exemplars by their SHA-256, and nothing of what is left at its default in
    ``LATER``.

    So a run has the record that it always had, and one that began before there were such settings resumes.
    """
    exemplars: str | None = settings[FIELD]
    others = {
        # As JSON has it.
        name: list(value) if isinstance(value, tuple) else value
        for name, value in settings.items()
        if name != FIELD and LATER.get(name, ...) != value
    }
    return others if exemplars is None else others | {RECORDED: hashlib.sha256(exemplars.encode()).hexdigest()}
