"""Whether two runs wrote the same text, and where they part: ``python -m eagle.evaluation.equal A B``.

At temperature 0 speculative decoding writes what the target alone writes, token for token. Exit status 0: the texts are
equal; 1: they differ; 2: they cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from eagle.errors import InputError
from eagle.evaluation.answering.records import UNANSWERED, RunFiles, some_of
from eagle.evaluation.reading.lines import is_unanswered, read_lines
from eagle.evaluation.reading.naming import about
from eagle.evaluation.reading.runs import answers_beside, find_run
from eagle.program import run_program

# Characters shown before and after the place where two texts part.
BEFORE, AFTER = 30, 60
_Texts = dict[tuple[int | str, int], list[str]]


@dataclass(frozen=True)
class Parting:
    """Where two answers to a question part.

    Attributes:
        question_id: of the question.
        choice: its index.
        turn: from 1.
        character: how many characters of the turn are equal.
        before: the end of those.
        first: how the first text goes on; None if it has no such turn.
        second: how the second one does.
    """

    question_id: int | str
    choice: int
    turn: int
    character: int
    before: str
    first: str | None
    second: str | None


def answers_of(path: Path) -> Path:
    """The answers that a path names: those of the run whose file it is, or that is alone in a folder.

    Raises:
        InputError: a folder without runs or with several.
    """
    try:
        folder = path.is_dir()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return find_run(path) if folder else answers_beside(path)


def read_texts(file: Path) -> _Texts:
    """The turns of every choice of an answers file, by question and choice.

    Raises:
        InputError: it cannot be read, or there are no answers in it.
    """
    lines, _ = read_lines(file, _turns)
    answered = [line for line in lines if line is not None]
    several = [question for question, times in Counter(key for line in answered for key in line).items() if times > 1]
    if several:
        print(
            f"{file}: {len(several)} questions have several answers ({some_of([key[0] for key in several])}); the last "
            "of each is used",
            file=sys.stderr,
        )
    texts = {key: turns for line in answered for key, turns in line.items()}
    unanswered = [question for (question, _), turns in texts.items() if not turns]
    if unanswered:
        print(
            f"{file}: {len(unanswered)} answers without text, as the question could not be answered "
            f"({some_of(unanswered)}); left out",
            file=sys.stderr,
        )
    texts = {key: turns for key, turns in texts.items() if turns}
    if not texts:
        raise InputError(f"{file}: no answers in it")
    return texts


def _turns(record: dict[str, Any]) -> _Texts:
    choices = record.get("choices")
    if not isinstance(choices, list) or not isinstance(record.get("question_id"), int | str):
        raise ValueError("no line of answers")
    texts: _Texts = {}
    for place, choice in enumerate(choices):
        turns = choice.get("turns") if isinstance(choice, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise ValueError("'turns' is not a list of texts")
        # Of a turn that could not be answered the text is empty, and nothing to compare.
        reasons = choice.get(UNANSWERED) if is_unanswered(choice) else ()
        answered = next((turn for turn, reason in enumerate(reasons) if reason is not None), len(turns))
        texts[record["question_id"], place] = turns[:answered]
    return texts


def parting(key: tuple[int | str, int], first: Sequence[str], second: Sequence[str]) -> Parting | None:
    """Where the turns of an answer first differ; what follows was said in another conversation.

    Args:
        key: question and choice.
        first: turns.
        second: turns of the other run.

    Returns:
        None if they are equal.
    """
    for turn, (one, other) in enumerate(zip_longest(first, second), start=1):
        if one != other:
            shorter = min(len(one or ""), len(other or ""))
            pairs = enumerate(zip((one or "")[:shorter], (other or "")[:shorter], strict=True))
            equal = next((place for place, (a, b) in pairs if a != b), shorter)
            return Parting(
                *key,
                turn=turn,
                character=equal,
                before=(one or "")[max(0, equal - BEFORE) : equal],
                first=None if one is None else one[equal : equal + AFTER],
                second=None if other is None else other[equal : equal + AFTER],
            )
    return None


def compare_texts(argv: Sequence[str] | None) -> bool:
    """The whole program but for its status.

    Returns:
        Whether the texts are equal.

    Raises:
        InputError: a file without answers, or nothing to compare.
    """
    parse = argparse.ArgumentParser(
        prog="python -m eagle.evaluation.equal",
        description="Are the answers of two runs the same text? Exit status 0 if they are, 1 if not.",
        allow_abbrev=False,
    )
    parse.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="file of answers, any file of a run, or a folder with one run",
    )
    parse.add_argument("--file-path", type=Path, help="as Spec-Bench's script calls it: the folder of two files")
    parse.add_argument("--jsonfile1", help="the name of one of them")
    parse.add_argument("--jsonfile2", help="the name of the other one")
    args = parse.parse_args(argv)
    asked = args.files
    if args.jsonfile1 is not None and args.jsonfile2 is not None and not asked:
        asked = [(args.file_path or Path()) / name for name in (args.jsonfile1, args.jsonfile2)]
    if len(asked) != 2:
        raise InputError("equal compares two runs: give two of them, or --file-path, --jsonfile1 and --jsonfile2")
    files = [answers_of(path) for path in asked]
    first, second = map(read_texts, files)
    both = [key for key in first if key in second]
    if not both:
        raise InputError(f"{files[0]} and {files[1]}: no question is in both, nothing to compare")
    sampled = [file for file in files if about(RunFiles.beside(file)).temperature]
    if sampled:
        print(f"{sampled[0]}: its temperature is above 0, so its text is one of many", file=sys.stderr)
    partings = [found for key in both if (found := parting(key, first[key], second[key]))]
    for found in partings:
        print(_shown(found))
    for file, mine, theirs in ((files[0], first, second), (files[1], second, first)):
        alone = [key[0] for key in mine if key not in theirs]
        if alone:
            print(f"only in {file}: {len(alone)} answers, the first to question {alone[0]}")
    print(f"{len(both) - len(partings)} of {len(both)} answers are equal")
    return not partings and first.keys() == second.keys()


def _shown(found: Parting) -> str:
    choice = f", choice {found.choice}" if found.choice else ""
    sides = [
        f"  {name}: {'no such turn' if text is None else repr(text) if text else 'ends here'}"
        for name, text in (("A", found.first), ("B", found.second))
    ]
    where = f"question {found.question_id}{choice}, turn {found.turn}, character {found.character}"
    return "\n".join([f"{where}, after {found.before!r}", *sides])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0 equal, 1 different, 2 wrong input."""
    equal = True

    def program(arguments: Sequence[str] | None) -> None:
        nonlocal equal
        equal = compare_texts(arguments)

    return run_program(program, argv) or int(not equal)


if __name__ == "__main__":
    sys.exit(main())
