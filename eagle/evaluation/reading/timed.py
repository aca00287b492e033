"""Runs as ``speed`` compares them: with their info, or, as EAGLE and Spec-Bench publish them, answers alone.

Answers tell new tokens and seconds. How many tokens a round emitted they tell where a choice has ``accept_lengths``
(Spec-Bench: one per round, over all turns, the target's own token included), or ``decoding_steps`` or ``idxs`` (rounds
of each turn; ``idxs``, EAGLE's, counts them from 0).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eagle.errors import InputError
from eagle.evaluation.answering.records import RunFiles, some_of
from eagle.evaluation.reading.lines import Answer, parse_answer, read_lines
from eagle.evaluation.reading.matching import doubled_in
from eagle.evaluation.reading.naming import About, about
from eagle.evaluation.reading.runs import answers_beside, read_run
from eagle.evaluation.reading.summary import Sums


@dataclass(frozen=True)
class TimedRun:
    """A run's names and sums.

    Attributes:
        files: where it is.
        about: what it was made with.
        sums: without rounds where the answers do not tell them.
    """

    files: RunFiles
    about: About
    sums: Sums


class _Rounds(NamedTuple):
    """Of a choice: its rounds, and the tokens that they emitted."""

    rounds: int
    emitted: int


class _Line(NamedTuple):
    """A line of answers that stand alone; rounds: of all choices, None where one does not tell them."""

    answer: Answer
    category: str | None
    rounds: _Rounds | None


def read_timed(path: Path, categories: Mapping[int | str, str | None]) -> TimedRun:
    """Read a run, or a file of answers without info beside it.

    Args:
        path: see ``find_run``; a file of answers may stand alone.
        categories: of questions, where the run does not tell.

    Raises:
        InputError: as ``read_run``; no answers in the file.
    """
    files = RunFiles.beside(answers_beside(path))
    try:
        alone = files.answers.is_file() and not files.info.exists()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if alone:
        return TimedRun(files, about(files), _sums(files, categories))
    run = read_run(path).with_categories(categories)
    return TimedRun(run.files, run.about, Sums.of(run))


def _sums(files: RunFiles, categories: Mapping[int | str, str | None]) -> Sums:
    # This package counts the token of the prefill, which no round emits, and has its settings beside the answers.
    own = files.run.exists()
    read, _ = read_lines(files.answers, lambda record: _line(record, own))
    doubled_in(files, [line and line.answer for line in read])
    lines = {line.answer.question_id: line for line in read if line is not None}
    unanswered = [
        question
        for question, line in lines.items()
        if any(choice.unanswered for choice in line.answer.choices.values())
    ]
    if unanswered:
        print(
            f"{files.answers}: {len(unanswered)} questions had a turn that could not be answered "
            f"({some_of(unanswered)}); left out",
            file=sys.stderr,
        )
    for question in unanswered:
        del lines[question]
    if not lines:
        raise InputError(f"{files.answers}: no answers with 'new_tokens' and 'wall_time' in it")
    choices = [list(line.answer.choices.values()) for line in lines.values()]
    columns = {
        "new tokens": [sum(choice.new_tokens for choice in each) for each in choices],
        "seconds": [sum(choice.wall_time for choice in each) for each in choices],
    }
    known = [line.rounds for line in lines.values() if line.rounds is not None]
    if len(known) == len(lines):
        columns |= {
            "rounds": [rounds for rounds, _ in known],
            "accepted": [emitted - rounds for rounds, emitted in known],
            "accepted and own": [emitted for _, emitted in known],
        }
    else:
        columns["rounds"] = [0] * len(lines)
    nothing = np.zeros((len(lines), 0))
    return Sums(
        questions=tuple(lines),
        categories=tuple(line.category or categories.get(question) for question, line in lines.items()),
        columns={name: np.array(column, np.float64) for name, column in columns.items()},
        at_least=nothing,
        could=nothing,
        phases={},
    )


def _line(record: dict[str, Any], own: bool) -> _Line:
    answer = parse_answer(record)
    category = record.get("category")
    told = [_rounds(choice, own) for choice in record["choices"]]
    known = [rounds for rounds in told if rounds is not None]
    total = _Rounds(sum(rounds for rounds, _ in known), sum(emitted for _, emitted in known))
    return _Line(answer, category if isinstance(category, str) else None, total if len(known) == len(told) else None)


def _rounds(choice: dict[str, Any], own: bool) -> _Rounds | None:
    """What a choice tells of its rounds; None if nothing that can be understood."""
    emitted = sum(choice["new_tokens"]) - (len(choice["new_tokens"]) if own else 0)
    for key, first in (("accept_lengths", 0), ("decoding_steps", 0), ("idxs", 1)):
        values = choice.get(key)
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            continue
        if key == "accept_lengths":
            return _Rounds(len(values), sum(values))
        if len(values) == len(choice["new_tokens"]):
            return _Rounds(sum(value + first for value in values), emitted)
    return None
