"""What answers the tabs of the page: one message at a time, each with what stops it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from eagle.application.conversation import ChatModel, ChatSettings, way_out
from eagle.application.html import Answer, error_html, turn_html
from eagle.application.model_thread import ModelThread, watch
from eagle.application.streaming import race
from eagle.chat_template import Message
from eagle.errors import InputError
from eagle.text import whole_characters

PERIOD = 0.1
"""Seconds between two looks at a running answer."""
AUTOREGRESSIVE = "Autoregressive"
NEW = "New conversation"
"""The button of the page."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Talk:
    """The finished turns of a conversation.

    Attributes:
        messages: what the model is given.
        html: what is shown.
    """

    messages: tuple[Message, ...] = ()
    html: str = ""


@dataclass(frozen=True)
class Running:
    """A turn that is being answered: what is shown of it."""

    html: str


@dataclass(frozen=True)
class Failed:
    """A turn that could not be answered: the message and the reason, as HTML, and the message to be sent again."""

    html: str
    message: str


@dataclass
class Service:
    """Answers messages with one model, in the order in which they come.

    Attributes:
        chat_model: the pair.
        settings: where a message's own say nothing.
        announced: of each session whose message is not being answered yet, what stops it.
        running: of each session whose message is being answered, or waits for the model, what stops it.
        thread: where the model runs.
    """

    chat_model: ChatModel
    settings: ChatSettings
    announced: dict[str, threading.Event] = field(default_factory=dict)
    running: dict[str, threading.Event] = field(default_factory=dict)
    thread: ModelThread = field(default_factory=ModelThread)

    def begin(self, session: str) -> None:
        """Announce a message of a session; it takes the place of one whose answer was never asked for.

        Raises:
            InputError: the one before it has not been answered yet.
        """
        if session in self.running:
            raise InputError("the answer before this one is still being written: stop it, or wait")
        self.announced[session] = threading.Event()

    def stop(self, session: str) -> None:
        """End the answer to a session's message, after the round it is in."""
        for sessions in (self.announced, self.running):
            if session in sessions:
                sessions[session].set()

    def leave(self, session: str) -> None:
        """Forget a session that is gone, and end its answer."""
        self.stop(session)
        self.announced.pop(session, None)
        self.running.pop(session, None)

    def close(self) -> None:
        """End all answers."""
        for session in [*self.announced, *self.running]:
            self.stop(session)
        self.thread.close()

    def answer(
        self, session: str, message: str, talk: Talk, choices: dict[str, Any], side_by_side: bool
    ) -> Iterator[Running | Talk | Failed]:
        """Answer a message that was announced.

        Args:
            session: whose message.
            message: what it says.
            talk: the conversation before it.
            choices: fields of ``ChatSettings``.
            side_by_side: also answer by autoregressive decoding. The conversation goes on from the other answer.

        Yields:
            What the running turn looks like, again and again; at last the conversation with it, or why it failed.
        """
        stopped = self.announced.pop(session, None)
        if stopped is None:
            return
        self.running[session] = stopped
        message = whole_characters(message)
        try:
            yield from self._answer(message, talk, replace(self.settings, **choices), side_by_side, stopped)
        except InputError as error:
            yield Failed(error_html(message, way_out(error, bool(talk.messages), f"press “{NEW}”")), message)
        except Exception as error:
            log.exception("an answer failed")
            reason = f"the model failed ({type(error).__name__}); the terminal says where"
            yield Failed(error_html(message, reason), message)
        finally:
            # However this ends, closed by a tab that is gone or not, the model goes on to the next message.
            self.leave(session)

    def _answer(
        self, message: str, talk: Talk, settings: ChatSettings, side_by_side: bool, stopped: threading.Event
    ) -> Iterator[Running | Talk]:
        messages = (*talk.messages, Message(role="user", content=message))
        drafted, others = Answer(settings.method_name), [Answer(AUTOREGRESSIVE)] if side_by_side else []
        answers = [drafted, *others]

        def work() -> None:
            for answer in answers:
                answer.state = "running"
            streams = [
                self.chat_model.answer(messages, settings, autoregressive=answer is not drafted) for answer in answers
            ]
            for lane, update in race(streams, stopped):
                answers[lane].add(update)
                if update.finished:
                    answers[lane].state = "finished"
            for answer in answers:
                if answer.state == "running":
                    answer.state = "stopped"

        def look() -> str:
            baseline = others[0].statistics if others else None
            return turn_html(message, [drafted.html(baseline), *(answer.html() for answer in others)])

        for html in watch(self.thread.begin(work), look, PERIOD):
            yield Running(html)
        reply = Message(role="assistant", content=drafted.text)
        yield Talk((*messages, reply), talk.html + look())
