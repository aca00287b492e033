"""Talking to a pair in a terminal: ``python -m eagle.chat``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TextIO

from eagle.application.conversation import (
    ChatModel,
    ChatSettings,
    add_chat_arguments,
    chat_model_of,
    settings_of,
    way_out,
)
from eagle.application.shading import ANSI_FAINT, ANSI_RESET, ansi
from eagle.application.streaming import OWN, Piece, Statistics, race
from eagle.chat_template import Message
from eagle.errors import InputError
from eagle.program import run_program
from eagle.text import whole_characters
from eagle.tree.shape import TREES

HELP = f"""\
/hsd [on|off]        hybrid trees and joint verification, or EAGLE-3; without a word: the other one
/temperature NUMBER  0 is greedy
/top_p NUMBER        nucleus mass; 0 and 1 are off
/tree KIND           {", ".join(TREES)}, or auto: what /hsd says
/reset               begin a new conversation
/help                this
/quit                end, as Ctrl-D
Ctrl-C stops an answer. Shaded text was drafted: the stronger the shade, the deeper in the tree."""
PROMPT = "> "
ANEW = "begin a new conversation with /reset"


class Screen:
    """Writes to a terminal, in colour if it has any.

    Args:
        out: where to.
        environment: ``NO_COLOR``, ``TERM`` and ``COLORTERM`` say which colours.
    """

    def __init__(self, out: TextIO, environment: Mapping[str, str]) -> None:
        self.out = out
        self.colours = out.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        self.truecolour = environment.get("COLORTERM") in ("truecolor", "24bit")

    def piece(self, piece: Piece) -> None:
        """A piece of an answer, shaded if it was drafted."""
        text = without_control(piece.text)
        if not self.colours or piece.depth == OWN:
            self.out.write(text)
            return
        # A background that is on at the end of a line fills the next one in some terminals.
        lines = (f"{ansi(piece.depth, self.truecolour)}{line}{ANSI_RESET}" if line else "" for line in text.split("\n"))
        self.out.write("\n".join(lines))

    def note(self, text: str) -> None:
        """A line that is no part of an answer."""
        self.out.write(f"{ANSI_FAINT}{text}{ANSI_RESET}\n" if self.colours else f"{text}\n")


def without_control(text: str) -> str:
    """Text that cannot steer a terminal: control characters other than newlines and tabs are replaced."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


class Quit(Exception):  # noqa: N818  # not an error
    """The user wants to end."""


@dataclass
class Chat:
    """A conversation in a terminal.

    Attributes:
        chat_model: who answers.
        settings: how.
        screen: where to.
        messages: of the conversation so far.
    """

    chat_model: ChatModel
    settings: ChatSettings
    screen: Screen
    messages: list[Message] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Answer a message, or do what a line that begins with ``/`` says.

        Raises:
            Quit: it says to end.
            InputError: it cannot be answered or done; everything is as it was.
        """
        if line.startswith("/"):
            self._command(*line[1:].split(maxsplit=1))
        else:
            self._answer(line)

    def describe(self) -> str:
        """The settings in one line."""
        settings = self.settings
        top_p = f" · top_p {settings.top_p:g}" if 0.0 < settings.top_p < 1.0 else ""
        return f"{settings.method_name} · temperature {settings.temperature:g}{top_p}"

    def _answer(self, message: str) -> None:
        messages = [*self.messages, Message(role="user", content=whole_characters(message))]
        text: list[str] = []
        statistics = Statistics()
        try:
            with stopping_at_ctrl_c() as stopped:
                for _, update in race([self.chat_model.answer(messages, self.settings)], stopped):
                    for piece in update.pieces:
                        self.screen.piece(piece)
                        text.append(piece.text)
                    self.screen.out.flush()
                    statistics = update.statistics
        finally:
            if text:
                self.screen.out.write("\n")
        self.messages = [*messages, Message(role="assistant", content="".join(text).strip())]
        self.screen.note(f"[{statistics}{' · stopped' if stopped.is_set() else ''}]")

    def _command(self, name: str = "", argument: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "hsd": lambda word: self._set(hsd=_on(word, otherwise=not self.settings.hsd)),
            "temperature": lambda word: self._set(temperature=_number(word, "/temperature 0.7")),
            "top_p": lambda word: self._set(top_p=_number(word, "/top_p 0.9")),
            "tree": lambda word: self._set(tree=None if word == "auto" else _given(word, "/tree hybrid")),
            "reset": self._reset,
            "help": lambda _: self.screen.note(HELP),
            "quit": self._quit,
        }
        if name not in commands:
            raise InputError(f"there is no /{name}; /help lists what there is")
        commands[name](argument.strip())

    def _set(self, **changes: object) -> None:
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        self.screen.note(f"[{self.describe()}]")

    def _reset(self, _: str) -> None:
        self.messages = []
        self.screen.note("[a new conversation]")

    def _quit(self, _: str) -> None:
        raise Quit


def _given(word: str, example: str) -> str:
    if not word:
        raise InputError(f"which? For instance {example}")
    return word


def _number(word: str, example: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise InputError(f"a number has to follow, for instance {example}") from error


def _on(word: str, otherwise: bool) -> bool:
    if word not in ("", "on", "off"):
        raise InputError(f"/hsd on or /hsd off, not {word}")
    return word == "on" if word else otherwise


@contextlib.contextmanager
def stopping_at_ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, instead of interrupting wherever the program is."""
    stopped = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def read_lines(screen: Screen) -> Iterator[str]:
    """Lines of the standard input that say something, until Ctrl-D."""
    prompt = PROMPT if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                screen.out.write("\n")
            return
        except KeyboardInterrupt:
            screen.out.write("\n")
            screen.note("[Ctrl-D or /quit ends]")
            continue
        if line:
            yield line


def talk(argv: Sequence[str] | None) -> None:
    """The whole program: load, then answer line by line.

    Raises:
        InputError: something about the arguments that the user can put right.
    """
    parse = argparse.ArgumentParser(
        description="Chat with a model in a terminal.",
        epilog=f"commands:\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_chat_arguments(parse)
    args = parse.parse_args(argv)
    settings = settings_of(args)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    with contextlib.suppress(ImportError):
        # Lets input() edit lines and remember them.
        import readline  # noqa: F401
    screen = Screen(sys.stdout, os.environ)
    chat = Chat(chat_model_of(args), settings, screen)
    screen.note(f"{chat.chat_model.name} · {chat.describe()} · /help")
    for line in read_lines(screen):
        try:
            chat.take(line)
        except InputError as error:
            screen.out.flush()
            said = way_out(error, bool(chat.messages), ANEW)
            print(f"error: {' '.join(said.split())}", file=sys.stderr, flush=True)
        except Quit:
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(talk, argv)


if __name__ == "__main__":
    sys.exit(main())
