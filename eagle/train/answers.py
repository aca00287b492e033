"""Answers of the target on disk: shards of JSON lines, appended answer by answer, and the settings they were made with.

Whatever happens to a run, its finished answers stay: a line is written whole or taken back, and one that a kill tore is
dropped when the run resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from eagle.errors import InputError
from eagle.locking import alone
from eagle.train.settings import CONFIG, refuse_other_settings

ANSWERS = "answers"


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt: of the target, or given (``eagle.train.given``).

    Attributes:
        key: identifies prompt and temperature.
        prompt: token ids, chat template applied.
        answer: token ids, the end token included if the text ended by itself.
        temperature: it was drawn at; 0 is greedy, None is one that was given.
        finished: it ended by itself, and was not cut.
    """

    key: str
    prompt: list[int]
    answer: list[int]
    temperature: float | None
    finished: bool


def read_answers(folder: Path, bar: bool = False) -> list[Answer]:
    """All answers of a folder, in the order they were written; a torn last line is left out.

    Args:
        folder: of the shards.
        bar: show how far the reading is.

    Raises:
        InputError: no answers, a malformed line (names it), or answers without any token.
    """
    answers: list[Answer] = []
    shards = [(shard, shard.stat().st_size) for shard in _shards(folder)]
    total = sum(size for _, size in shards)
    with tqdm(total=total, desc="answers", unit="B", unit_scale=True, dynamic_ncols=True, disable=not bar) as progress:
        for shard, size in shards:
            answers.extend(_read(shard))
            progress.update(size)
    if not answers:
        raise InputError(f"{folder} holds no answers; make some with: python -m eagle.train generate")
    if not any(answer.answer for answer in answers):
        raise InputError(f"{folder}: all {len(answers)} answers are empty; there is nothing to learn from")
    return answers


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("answers-*.jsonl"))


def _read(shard: Path) -> Iterator[Answer]:
    try:
        lines = shard.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"cannot read {shard}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            answer = Answer(**json.loads(line))
            _check(answer)
        except (ValueError, TypeError) as error:
            raise InputError(f"{shard}, line {number}: no answer ({error}); move the file away") from None
        yield answer


def _check(answer: Answer) -> None:
    for name in ("prompt", "answer"):
        ids = getattr(answer, name)
        if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
            raise ValueError(f"{name!r} must be a list of token ids")
    if not answer.prompt:
        raise ValueError("'prompt' is empty")
    if not isinstance(answer.key, str) or not isinstance(answer.temperature, int | float | None):
        raise ValueError("'key' must be a text and 'temperature' a number or null")
    if not isinstance(answer.finished, bool):
        raise ValueError("'finished' must be true or false")


@dataclass
class AnswerWriter:
    """Appends answers to a folder's shards; open it with ``writing``.

    Attributes:
        folder: of the shards.
        shard_size: lines of a shard at most.
        keys: of all answers there are.
        tokens: answer tokens there are.
    """

    folder: Path
    shard_size: int
    keys: set[str] = field(default_factory=set)
    tokens: int = 0
    _shard: int = 0
    _lines: int = 0

    def append(self, answer: Answer) -> None:
        """Add an answer; it is on its way to the disk when this returns.

        Raises:
            InputError: the disk refused; what was there before is as it was.
        """
        if self._lines >= self.shard_size:
            self._shard, self._lines = self._shard + 1, 0
        shard = self.folder / f"answers-{self._shard:05d}.jsonl"
        try:
            _append_whole(shard, json.dumps(asdict(answer), separators=(",", ":")) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write to {shard}: {error}; {len(self.keys):,} answers are saved, and the same command resumes"
            ) from error
        self._lines += 1
        self._count(answer)

    def resume(self) -> None:
        """Take up what is there, without a torn last line."""
        for shard in _shards(self.folder):
            found = list(_read(shard))
            for answer in found:
                self._count(answer)
            self._shard, self._lines = int(shard.stem.removeprefix("answers-")), len(found)
            contents = shard.read_bytes()
            if not contents.endswith(b"\n"):
                os.truncate(shard, contents.rfind(b"\n") + 1)

    def _count(self, answer: Answer) -> None:
        self.keys.add(answer.key)
        self.tokens += len(answer.answer)


def _append_whole(file: Path, text: str) -> None:
    """Append a text, or nothing of it."""
    with file.open("ab", buffering=0) as sink:
        before = sink.seek(0, os.SEEK_END)
        try:
            rest = memoryview(text.encode())
            while rest:
                rest = rest[sink.write(rest) :]
        except OSError:
            sink.truncate(before)
            raise


@contextlib.contextmanager
def writing(folder: Path, settings: dict[str, Any], shard_size: int) -> Iterator[AnswerWriter]:
    """Begin a folder of answers or resume it, and keep other processes from writing to it meanwhile.

    Args:
        folder: made if need be.
        settings: what shapes the answers, in the types of YAML; must equal that of the answers already there.
        shard_size: lines of a shard at most.

    Raises:
        InputError: other settings (names one, and both values), another process at work, a malformed line, or a folder
            that cannot be written to.
    """
    writer = AnswerWriter(folder, shard_size)
    with alone(folder, ANSWERS, f"run is writing to {folder}", "choose another --out"):
        try:
            _refuse_other_settings(folder, settings)
            writer.resume()
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error}") from error
        yield writer


def _refuse_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Compare the settings with those of the answers there are; where there are none, write them down."""
    file = folder / CONFIG
    if not _shards(folder):
        temporary = file.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        temporary.replace(file)
        return
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        if not isinstance(recorded, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{folder} has answers, but their settings {CONFIG} cannot be read ({error}); choose another --out"
        ) from error
    refuse_other_settings(folder, recorded, settings, "choose another --out, or move the answers away")
