"""Which runs may stand beside each other: those that answer the same questions, best on the same machine."""

from __future__ import annotations

import sys
from typing import Protocol

from eagle.errors import InputError
from eagle.evaluation.answering.records import RunFiles
from eagle.evaluation.reading.naming import About


class Run(Protocol):
    """Whatever knows where a run is and what it was made with."""

    @property
    def files(self) -> RunFiles:
        """Where it is."""

    @property
    def about(self) -> About:
        """What it was made with."""


def same_questions(first: Run, second: Run) -> bool:
    """Whether two runs answer one file of questions; of a run that does not tell, its ids are believed."""
    return len({first.about.questions, second.about.questions} - {None}) < 2


def require_same_questions(first: Run, second: Run) -> None:
    """Refuse to set runs side by side of which equal ids may be different questions.

    Raises:
        InputError: they answer different files of questions.
    """
    if not same_questions(first, second):
        raise InputError(
            f"{second.files.answers} answers another file of questions than {first.files.answers} (questions_sha256 in "
            f"{second.files.run.name} and {first.files.run.name}), so equal ids are not equal questions; name runs of "
            "one file"
        )


def note_other_machine(first: Run, second: Run) -> None:
    """Say on standard error what the speeds of two runs depend on beside their methods."""
    mine, theirs = first.about.timed, second.about.timed
    apart = [f"{key} {mine[key]}, {theirs[key]}" for key in mine if key in theirs and mine[key] != theirs[key]]
    if apart:
        print(
            f"note: {first.files.answers} and {second.files.answers} were timed on different terms "
            f"({'; '.join(apart)}); their speeds differ by more than the method",
            file=sys.stderr,
        )
