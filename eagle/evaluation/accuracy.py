"""Are the answers right: ``python -m eagle.evaluation.accuracy ANSWERS [ANSWERS ...] --bench-name gsm8k``.

As in the usual evaluation of GSM8K (Cobbe et al. 2021): the last number of an answer against the number that its
reference gives behind ``####``. Shown beside what drafting gained: BE, block efficiency, and DS, decoding speed. BE is
accepted draft tokens a round, with the target's own token (as the HSD paper has it) and without (as EAGLE's scripts).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from eagle.data.questions import Question, load_questions
from eagle.errors import InputError
from eagle.evaluation.answering.bench import GSM8K, add_bench_arguments, question_file
from eagle.evaluation.reading.graded import Accuracy, Graded, differences, table
from eagle.evaluation.reading.lines import parse_answer, read_lines
from eagle.evaluation.reading.report import Member, read_members
from eagle.evaluation.reading.runs import GAMMA, Run, find_run, require_gamma
from eagle.program import run_program

MARK = "####"
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
# A sign counts where nothing that could be subtracted from stands before it; minus is a hyphen or U+2212.
NUMBER = re.compile("(?:(?<![0-9A-Za-z)\\]])[-\u2212]\\$?)?(?:[0-9]+(?:\\.[0-9]+)?|\\.[0-9]+)")

Texts = dict[int | str, list[tuple[str, ...]]]
"""Of each question the choices, each a text per turn."""


def final_number(text: str) -> Decimal | None:
    """The last number in a text, without the commas of its thousands; None if there is none.

    A dollar sign before it and a full stop behind it are no part of it.
    """
    numbers = NUMBER.findall(THOUSANDS.sub("", text))
    return Decimal(re.sub("[\u2212$]", lambda sign: "" if sign[0] == "$" else "-", numbers[-1])) if numbers else None


def reference_number(text: str) -> Decimal | None:
    """The number behind ``####``, or the last one of a reference without that mark; None if there is none."""
    return final_number(text.rpartition(MARK)[2])


def accuracy(texts: Texts, questions: Mapping[int | str, Question]) -> Accuracy:
    """Compare answers with references.

    Args:
        texts: answers, by question.
        questions: with their references, by id.

    Raises:
        InputError: a question that is not there, has no reference with a number, or has more references than answers.
    """
    shares: dict[int | str, float] = {}
    without_number = 0
    for question_id, choices in texts.items():
        expected = _expected(question_id, questions)
        if any(len(turns) < len(expected) for turns in choices):
            raise InputError(f"question {question_id} has {len(expected)} references, but fewer turns were answered")
        # What is asked beyond the references is not compared.
        found = [[final_number(text) for text in turns[: len(expected)]] for turns in choices]
        right = [answer == number for turns in found for answer, number in zip(turns, expected, strict=True)]
        without_number += sum(number is None for turns in found for number in turns)
        shares[question_id] = sum(right) / len(right)
    return Accuracy(len(shares), sum(shares.values()) / len(shares), without_number, shares)


def _expected(question_id: int | str, questions: Mapping[int | str, Question]) -> list[Decimal]:
    question = questions.get(question_id)
    if question is None:
        raise InputError(f"question {question_id} of the answers is not in the question file; name theirs")
    if not question.reference:
        raise InputError(f"question {question_id} has no reference in the question file to compare with")
    numbers = [reference_number(text) for text in question.reference]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        raise InputError(
            f"question {question_id}: its reference holds no number; accuracy is for questions answered by a number"
        )
    return known


def read_texts(member: Member) -> Texts:
    """The answers of a run's complete questions.

    Raises:
        InputError: there are none with a text for each turn.
    """
    lines, _ = read_lines(member.run.files.answers, _parse)
    complete = set(member.run.questions)
    texts = {question_id: choices for question_id, choices in filter(None, lines) if question_id in complete}
    if not texts:
        raise InputError("no line with the answers' texts")
    return texts


def _parse(record: dict[str, Any]) -> tuple[int | str, list[tuple[str, ...]]]:
    question_id = parse_answer(record).question_id
    texts = []
    for choice in record["choices"]:
        turns = choice.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise ValueError("'turns' is not a list with a text for each turn")
        texts.append(tuple(turns))
    return question_id, texts


def _note_other_questions(run: Run, questions: Path) -> None:
    """Question files count from 0 alike: answers to one give no error with another, only wrong figures."""
    if run.about.questions not in (None, hashlib.sha256(questions.read_bytes()).hexdigest()):
        print(
            f"note: {run.files.answers} was answered from another file than {questions}; ACC holds only if the "
            "questions are the same",
            file=sys.stderr,
        )


def report(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    parse = argparse.ArgumentParser(
        prog="python -m eagle.evaluation.accuracy",
        description="Exact match of the final number, accepted lengths and speed of finished runs.",
        allow_abbrev=False,
    )
    parse.add_argument("answers", nargs="+", type=Path, metavar="ANSWERS", help="file of a run, or folder with runs")
    parse.add_argument(
        "--against", type=Path, metavar="FILE", help="run that the others are compared with; default: the first"
    )
    parse.add_argument("--gamma", type=int, metavar="N", help="BE only of rounds of this draft length" + GAMMA)
    add_bench_arguments(parse, default=GSM8K)
    args = parse.parse_args(argv)
    require_gamma(args.gamma)
    against: list[Path] = [] if args.against is None else [find_run(args.against)]
    # Before the questions, which may have to be fetched.
    members = read_members([*against, *args.answers])
    file = question_file(args)
    questions = {question.question_id: question for question in load_questions(file)}
    graded = []
    for member in members:
        _note_other_questions(member.run, file)
        try:
            right = accuracy(read_texts(member), questions)
        except InputError as error:
            raise InputError(f"{member.run.files.answers}, {file}: {error}") from None
        graded.append(Graded.of(member, right, args.gamma))
    made = [table(graded, args.gamma), differences(graded, strict=bool(against))]
    print("\n\n".join("\n".join([one.title, "", one.text(), *one.notes]) for one in made if one is not None))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(report, argv)


if __name__ == "__main__":
    sys.exit(main())
