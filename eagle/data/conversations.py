"""Conversations: files of prompts in the formats people have, and ShareGPT."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle import assets
from eagle.data.jsonl import BOM, is_text, parsed
from eagle.errors import InputError

Message = dict[str, str]

HUB = "hf:"
ROLES = {
    **{"human": "user", "user": "user", "system": "system"},
    **{"gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"},
}
TEXTS = ("prompt", "question")
KEYS = ("prompt", "messages", "turns", "conversations", "question")


@dataclass(frozen=True)
class Conversation:
    """The human side of a conversation, and what was answered.

    Attributes:
        system: the system message; None leaves that to the chat template.
        turns: what the human says, at least one text.
        answers: to the first turns, up to one that is not followed by an answer.
    """

    system: str | None
    turns: tuple[str, ...]
    answers: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether it can be encoded: JSON may name half of a surrogate pair, which is no character."""
        return is_text("".join((self.system or "", *self.turns)))

    def prompt(self, turn: int = 0) -> list[Message]:
        """The chat up to the answer to a turn, at most as many as there are ``answers``."""
        chat = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, answered in zip(self.turns[:turn], self.answers[:turn], strict=True):
            chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [*chat, {"role": "user", "content": self.turns[turn]}]


def read_conversations(source: str | None) -> list[Conversation]:
    """Read conversations that a human begins; says on standard error how many records there were.

    Args:
        source: a file of JSON lines with "prompt", "question" (GSM8K's), "messages", "turns" or "conversations", or of
            one JSON array of such records; or a Hugging Face data set, ``hf:owner/name[/config][:split][:column]``;
            None is ShareGPT.

    Raises:
        InputError: it cannot be read, a record is malformed (names it), no record begins with a human turn, or all that
            do are no valid text.
    """
    where = "ShareGPT" if source is None else source
    read = 0
    conversations: list[Conversation] = []
    broken: list[str] = []
    for place, record in read_records(source):
        read += 1
        if conversation := _conversation(record, place):
            if conversation.is_text:
                conversations.append(conversation)
            else:
                broken.append(place)
    if broken and not conversations:
        raise InputError(
            f"{broken[0]}: the prompt is no valid text, nor is any other of {where}: they hold halves of surrogate "
            "pairs (such as \\ud83d), which are no characters; write the file anew"
        )
    if not conversations:
        raise InputError(f"{where} holds no prompts")
    left_out = f"; {len(broken):,} are no valid text, the first is {broken[0]}" if broken else ""
    assets.say(f"{where}: {read:,} complete records, {len(conversations):,} of them begun by a human{left_out}")
    return conversations


Records = Iterator[tuple[str, Any]]
"""Where a record stands, for errors, and the record."""


def read_records(source: str | None) -> Records:
    """The records of a source as they stand there.

    Args:
        source: see ``read_conversations``.

    Raises:
        InputError: it cannot be read, or a record is no JSON (names it).
    """
    if source is None:
        return _array(assets.sharegpt(), cut_off=True)
    if source.startswith(HUB):
        return _hub_records(source.removeprefix(HUB))
    return _file_records(Path(source))


def _file_records(file: Path) -> Records:
    try:
        with file.open(encoding="utf-8-sig") as opened:
            array = opened.read(4096).lstrip().startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts {file}: {error}") from error
    return _array(file, cut_off=False) if array else _lines(file)


def _lines(file: Path) -> Records:
    # Only newlines end a record: splitlines() would also split at characters that JSON allows inside a text.
    for number, line in enumerate(file.read_bytes().removeprefix(BOM).split(b"\n"), start=1):
        if line.strip():
            try:
                yield f"{file}, line {number}", parsed(line)
            except ValueError as error:
                raise InputError(f"{file}, line {number}: not valid JSON ({error})") from None


def _array(file: Path, cut_off: bool) -> Records:
    """The records of one JSON array; of one that is cut off, those that are complete."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace" if cut_off else "strict")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the prompts {file}: {error}") from error
    decoder, place, number = json.JSONDecoder(), text.index("[") + 1, 0
    while True:
        place = _skip(text, place)
        if number and text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] == "]":
            return
        number += 1
        try:
            record, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            if cut_off:
                return
            raise InputError(f"{file}, record {number}: not valid JSON ({error})") from None
        yield f"{file}, record {number}", record


def _skip(text: str, place: int) -> int:
    """Where the next character that is no white space stands."""
    while text[place : place + 1].isspace():
        place += 1
    return place


def _hub_records(name: str) -> Records:
    """Rows of a Hugging Face data set, ``owner/name[/config][:split][:column]``, or of a local folder."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError(f"{HUB}{name} needs the package datasets (pip install datasets)") from None
    path, split, column = (*name.split(":"), "", "")[:3]
    config = None
    if path.count("/") == 2 and not Path(path).exists():
        path, config = path.rsplit("/", 1)
    try:
        rows = datasets.load_dataset(path, config, split=split or "train")
    except Exception as error:  # of many types, all of them about the name or the network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the data set {path} could not be read: {reason}") from error
    if column and column not in rows.column_names:
        raise InputError(f"the data set {path} has no column {column!r}; it has {', '.join(rows.column_names)}")
    for number, row in enumerate(rows, start=1):
        record = {"messages" if isinstance(row[column], list) else "prompt": row[column]} if column else row
        yield f"{path}, row {number}", record


def _conversation(record: Any, where: str) -> Conversation | None:
    """The human side of a record; None if it does not begin with a human text."""
    key = next((key for key in KEYS if isinstance(record, dict) and record.get(key) is not None), None)
    if key is None:
        raise InputError(f"{where}: must be a JSON object with one of {', '.join(KEYS)}")
    value = record[key]
    if key in TEXTS:
        said = [("user", value)]
    elif not isinstance(value, list):
        raise InputError(f"{where}: {key!r} must be a list")
    elif key == "turns":
        said = [("user", turn) for turn in value]
    else:
        said = [_said(message, where) for message in value]
    if not all(isinstance(text, str) for _, text in said):
        raise InputError(f"{where}: {key!r} must hold texts")
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    if not said or said[0][0] != "user" or not said[0][1].strip():
        return None
    turns = tuple(text.strip() for role, text in said if role == "user")
    return Conversation(system or None, turns, tuple(_answers(said)))


def _answers(said: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The answers of messages by role, as long as user and assistant say something in turn."""
    for place in range(0, len(said) - 1, 2):
        (asking, question), (answering, answer) = said[place : place + 2]
        in_turn = (asking, answering) == ("user", "assistant")
        if not (in_turn and question.strip() and answer.strip() and is_text(answer)):
            return
        yield answer.strip()


def _said(message: Any, where: str) -> tuple[str, Any]:
    """Role and text of a message, in the words of ShareGPT ("from", "value") or of chat templates."""
    if not isinstance(message, dict):
        raise InputError(f"{where}: a message must be a JSON object, not {message!r}")
    role = message.get("role", message.get("from"))
    return ROLES.get(str(role), "other"), message.get("content", message.get("value"))
