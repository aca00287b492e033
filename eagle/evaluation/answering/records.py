"""The three files of a run: answers, per-turn info, and the settings they were made with.

Answers and info are JSON lines, appended and flushed question by question, so whatever happens to a run its finished
questions stay. The settings decide whether a later run may add to the files.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.data.jsonl import BOM
from eagle.errors import InputError
from eagle.identity import BASE, told_apart
from eagle.locking import alone

Record = dict[str, Any]

UNANSWERED = "unanswered"
"""Key of a choice with a turn that could not be answered: an entry per turn, the reason or None."""
# Of a list of questions so many are named.
NAMED = 5


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes.

    Attributes:
        answers: one line per question, in FastChat's format.
        info: one line per question and choice.
        run: settings and environment, one JSON object.
    """

    answers: Path
    info: Path
    run: Path

    @classmethod
    def beside(cls, answers: Path) -> RunFiles:
        """The files of a run whose answers go to ``answers``."""
        stem = answers.name.removesuffix(".jsonl")
        return cls(answers, answers.with_name(f"{stem}_info.jsonl"), answers.with_name(f"{stem}_run.json"))

    @classmethod
    def to_write(cls, answers: Path) -> RunFiles:
        """The same to write to: where the answers are a link, beside the file that it leads to.

        Rewriting replaces a file by another; a link would be cut off from the answers it stands for.
        """
        return cls.beside(answers.resolve() if answers.is_symlink() else answers)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other programs from writing the same files meanwhile, see ``eagle.locking`` for where that holds.

        Raises:
            InputError: another program is writing them, or the folder cannot be written to.
        """
        what = f"run is writing {self.answers}"
        with alone(self.answers.parent, self.answers.name, what, "choose another --folder_id"):
            try:
                self.answers.open("ab").close()
            except OSError as error:
                raise InputError(f"cannot write to {self.answers}: {error}") from error
            try:
                yield
            finally:
                if self.answers.exists() and self.answers.stat().st_size == 0:
                    self.answers.unlink()

    def recorded(self) -> Record | None:
        """The contents of the run file; None if there are no answers yet.

        Raises:
            InputError: answers without a readable run file.
        """
        if not self.answers.exists() or self.answers.stat().st_size == 0:
            return None
        try:
            recorded: Record = json.loads(self.run.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.answers} has answers, but its settings {self.run.name} cannot be read ({error}); "
                "move the answers away or choose another --folder_id"
            ) from error
        return recorded

    def begin(self, settings: Record, environment: Record, choices: int) -> set[int | str]:
        """Start or resume; a truncated last line is dropped, and so is a question that is not in both files.

        A question that was answered twice is finished, and both answers stay; says on standard error which there are.

        Args:
            settings: everything that shapes the text; must equal that of the answers already there.
            environment: names, versions and the like, for the record.
            choices: answers per question.

        Returns:
            The ids of the questions that are finished.

        Raises:
            InputError: answers of other settings, or a malformed line that is not the last one.
        """
        self.check(settings)
        _replace(self.run, json.dumps({"settings": settings, "environment": environment}, indent=2) + "\n")
        answers, infos = _read_lines(self.answers), _read_lines(self.info)
        described: dict[int | str, set[int]] = {}
        for _, info in infos:
            described.setdefault(info["question_id"], set()).add(info.get("choice_index", 0))
        there = Counter(answer["question_id"] for _, answer in answers)
        finished = {question for question in there if described.get(question, set()) >= set(range(choices))}
        for file, lines in ((self.answers, answers), (self.info, infos)):
            kept = "".join(line for line, record in lines if record["question_id"] in finished)
            if file.exists() and file.stat().st_size != len(kept.encode()):
                _replace(file, kept)
        doubled = [question for question in there if question in finished and there[question] > 1]
        if doubled:
            print(
                f"{self.answers}: {len(doubled)} questions have several answers ({some_of(doubled)}), as two programs "
                "leave them that write one file; all are kept, and none is answered again",
                file=sys.stderr,
            )
        return finished

    def check(self, settings: Record) -> None:
        """Whether answers of these settings may be added; writes nothing.

        Raises:
            InputError: there are answers of other settings.
        """
        run = self.recorded()
        if run is None:
            return
        recorded: Record = run.get("settings", {})
        way_out = "choose another --folder_id or --model-id, or move the file away"
        if BASE not in recorded:
            raise InputError(
                f"{self.answers} was made by a version that did not record what its models hold ({BASE} is missing in "
                f"{self.run.name}), so nothing can be added to it; {way_out}"
            )
        different = [key for key in sorted(recorded.keys() | settings.keys()) if recorded.get(key) != settings.get(key)]
        if different:
            key = different[0]
            more = f" (and {', '.join(different[1:])})" if different[1:] else ""
            told = told_apart(key, recorded.get(key), settings.get(key))
            raise InputError(f"{self.answers} was made with {told}{more}; {way_out}")

    def append(self, answer: Record, infos: Sequence[Record]) -> None:
        """Add a finished question: its info first, so an answer is never without.

        Raises:
            InputError: the disk refused.
        """
        try:
            _append(self.info, infos)
            _append(self.answers, [answer])
        except OSError as error:
            raise InputError(
                f"cannot write to {self.answers.parent}: {error}; earlier questions are saved, and the same "
                "command resumes"
            ) from error

    def unanswered(self) -> list[tuple[int | str, int, str]]:
        """The first turn of each question that could not be answered: question, turn from 1, and why."""
        found: dict[int | str, tuple[int, str]] = {}
        for answer in read_records(self.answers):
            for choice in answer["choices"]:
                reasons = enumerate(choice.get(UNANSWERED, ()), start=1)
                first = next(((turn, why) for turn, why in reasons if why is not None), None)
                if first is not None:
                    found.setdefault(answer["question_id"], first)
        return [(question, turn, why) for question, (turn, why) in found.items()]

    def sort(self, order: Sequence[int | str]) -> None:
        """Bring both files into the order of the questions, if they finished in another one."""
        rank = {question_id: place for place, question_id in enumerate(order)}
        for file in (self.answers, self.info):
            lines = _read_lines(file)
            ordered = sorted(lines, key=lambda item: rank.get(item[1]["question_id"], len(rank)))
            if ordered != lines:
                _replace(file, "".join(line for line, _ in ordered))


def some_of(questions: Sequence[int | str]) -> str:
    """The first of some ids, for a message."""
    return ", ".join(map(str, questions[:NAMED])) + (", ..." if len(questions) > NAMED else "")


def _append(file: Path, records: Sequence[Record]) -> None:
    with file.open("a", encoding="utf-8") as sink:
        sink.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        sink.flush()
        os.fsync(sink.fileno())


def _replace(file: Path, text: str) -> None:
    """Rewrite a file at once: readers and a kill see the old contents or the new."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}") from error


def read_records(file: Path) -> list[Record]:
    """What the complete lines of a JSON-lines file hold; nothing where there is no file."""
    return [record for _, record in _read_lines(file)]


def _read_lines(file: Path) -> list[tuple[str, Record]]:
    """The complete lines of a file with what they hold; a last line without its newline is left out."""
    if not file.exists():
        return []
    lines = file.read_bytes().removeprefix(BOM).split(b"\n")[:-1]
    read = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8")
            record = json.loads(text)
            if not isinstance(record, dict) or "question_id" not in record:
                raise ValueError("no object with a question_id")
        except ValueError as error:
            raise InputError(f"{file}, line {number}: {error}; move the file away to start anew") from None
        read.append((text + "\n", record))
    return read
