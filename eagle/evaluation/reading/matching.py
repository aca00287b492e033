"""Which line of info belongs to which answer, and which answer counts where a question has several.

Two programs that write one file leave two answers to a question. The last one that is whole counts, as FastChat's judge
takes the last; where lines of several answers lie among each other, what each took tells them apart.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from eagle.errors import InputError
from eagle.evaluation.answering.records import RunFiles, some_of
from eagle.evaluation.reading.lines import Answer, Choice, Info

Question = int | str
Complete = dict[Question, list[tuple[Choice, Info]]]
"""The choices of each question with their info."""


@dataclass(frozen=True)
class Matched:
    """The answers of a run that count.

    Attributes:
        complete: those with their info, in the order of the info lines.
        unanswered: questions with a turn that could not be answered; they are not among those.
        doubled: questions with several answers.
    """

    complete: Complete
    unanswered: tuple[Question, ...]
    doubled: tuple[Question, ...]


class _Pair(NamedTuple):
    """A choice with its info; line: the place of its answer in the file."""

    question: Question
    line: int
    choice: Choice
    info: Info


def match(files: RunFiles, answers: list[Answer | None], infos: list[Info | None]) -> Matched:
    """Put answers and info together; what is left out, and what is there twice, is named on standard error.

    Args:
        files: of the run.
        answers: its lines, None for one that was skipped.
        infos: of its info file.

    Raises:
        InputError: info lines that name no question, and a question with several choices.
    """
    if any(info is not None and info.question_id is None for info in infos):
        pairs = _by_place(files, answers, infos)
    else:
        pairs = _by_id(files, answers, infos)
    lines: dict[Question, dict[int, list[tuple[Choice, Info]]]] = {}
    for question, line, choice, info in pairs:
        if choice.turns == info.turns:
            lines.setdefault(question, {}).setdefault(line, []).append((choice, info))
        else:
            turns = f"{choice.turns} turns in the answers, {info.turns} in the info"
            print(f"{files.answers}: question {question}: {turns}; left out", file=sys.stderr)
    complete = {question: _last_whole(each) for question, each in lines.items()}
    unanswered = [question for question, pairs in complete.items() if any(choice.unanswered for choice, _ in pairs)]
    return Matched(
        {question: pairs for question, pairs in complete.items() if question not in set(unanswered)},
        tuple(unanswered),
        doubled_in(files, answers),
    )


def doubled_in(files: RunFiles, answers: list[Answer | None]) -> tuple[Question, ...]:
    """The questions with more than one answer, which are named on standard error."""
    count = Counter(answer.question_id for answer in answers if answer is not None)
    doubled = tuple(question for question, times in count.items() if times > 1)
    if doubled:
        print(
            f"{files.answers}: {len(doubled)} questions have several answers ({some_of(doubled)}); the last of each "
            "is used",
            file=sys.stderr,
        )
    return doubled


def _last_whole(lines: dict[int, list[tuple[Choice, Info]]]) -> list[tuple[Choice, Info]]:
    """Of the answers to a question, by their lines, the last one of those with the most choices."""
    return max(lines.items(), key=lambda item: (len(item[1]), item[0]))[1]


def _by_place(files: RunFiles, answers: list[Answer | None], infos: list[Info | None]) -> Iterator[_Pair]:
    """Info lines without ids, as the published code writes them: the i-th belongs to the i-th answer."""
    if len(answers) != len(infos):
        print(
            f"{files.answers}: {len(answers)} answers, but {len(infos)} lines in {files.info.name}, which name no "
            "question; taken in order",
            file=sys.stderr,
        )
    both = min(len(answers), len(infos))
    for line, (answer, info) in enumerate(zip(answers[:both], infos[:both], strict=True)):
        if answer is None or info is None:
            continue
        if len(answer.choices) > 1:
            raise InputError(
                f"{files.info}: its lines name no question, and question {answer.question_id} has several choices, so "
                "which line is whose cannot be told"
            )
        yield _Pair(answer.question_id, line, next(iter(answer.choices.values())), info)


def _by_id(files: RunFiles, answers: list[Answer | None], infos: list[Info | None]) -> Iterator[_Pair]:
    waiting: dict[tuple[Question, int], list[tuple[int, Choice]]] = {}
    for line, answer in enumerate(answers):
        if answer is not None:
            for index, choice in answer.choices.items():
                waiting.setdefault((answer.question_id, index), []).append((line, choice))
    lone = 0
    for info in infos:
        if info is None or info.question_id is None:
            continue
        candidates = waiting.get((info.question_id, info.choice_index))
        if not candidates:
            lone += 1
            continue
        # Both files have the seconds of an answer from one clock, to the last digit.
        own = next((item for item in candidates if item[1].wall_time == info.generate_time), candidates[0])
        candidates.remove(own)
        yield _Pair(info.question_id, *own, info)
    left = sum(map(len, waiting.values()))
    for count, what in ((lone, "lines of info without an answer of their own"), (left, "answers without info")):
        if count:
            print(f"{files.answers}: {count} {what}; left out", file=sys.stderr)
