"""Answering the tabs of the page, without the page."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from eagle.application.conversation import ChatModel, ChatSettings, Message
from eagle.application.service import Failed, Running, Service, Talk
from eagle.application.streaming import Update
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from tests.application.endless import ENDLESS, make_endless_pair
from tests.tiny import load_pair

LONG = {"max_new_tokens": ENDLESS}
SHORT = {"max_new_tokens": 10}


class Counting(ChatModel):
    """Counts the rounds it does, and fails when it is told to."""

    rounds, failing = 0, False

    def answer(
        self, messages: Sequence[Message], settings: ChatSettings, autoregressive: bool = False
    ) -> Generator[Update, None, None]:
        if self.failing:
            raise RuntimeError("secret details")
        for update in super().answer(messages, settings, autoregressive):
            self.rounds += 1
            yield update


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    _, base, _, head, *_ = make_endless_pair(tmp_path_factory.mktemp("chat"))
    return load_pair(Path(base), Path(head))


@pytest.fixture
def service(model: EaModel) -> Generator[Service, None, None]:
    service = Service(Counting(model, seed=4), ChatSettings())
    yield service
    service.close()


def ask(service: Service, message: str, talk: Talk, **choices: object) -> list[Running | Talk | Failed]:
    service.begin("tab")
    return list(service.answer("tab", message, talk, choices, side_by_side=False))


def test_a_conversation_grows_by_what_was_said(service: Service) -> None:
    *_, first = ask(service, "One?", Talk(), **SHORT)
    *looks, second = ask(service, "Two?", first, **SHORT)
    assert [message["role"] for message in second.messages] == ["user", "assistant"] * 2
    assert second.messages[:2] == first.messages
    assert second.html.startswith(first.html)
    assert all(isinstance(look, Running) for look in looks)
    text = "".join(
        piece.text
        for update in service.chat_model.answer([{"role": "user", "content": "One?"}], ChatSettings(**SHORT))
        for piece in update.pieces
    )
    assert first.messages[1]["content"] == text.strip()


def test_a_full_context_names_the_ways_out_that_there_are(service: Service) -> None:
    long = 40_000 * "x"
    *_, begun = ask(service, "One?", Talk(), **SHORT)
    (alone,) = refusals(ask(service, long + long, Talk(), **SHORT))
    (behind,) = refusals(ask(service, long + long, begun, **SHORT))
    assert re.search(r"context of 60000; send a shorter message</div>$", alone)
    assert re.search(r"context of 60000; send a shorter message, or press “New conversation”</div>$", behind)


def refusals(shown: list[Running | Talk | Failed]) -> list[str]:
    return [failed.html for failed in shown if isinstance(failed, Failed)]


def test_what_is_pasted_with_half_a_character_is_answered_and_can_be_shown(service: Service) -> None:
    *_, done = ask(service, "Hi \ud83d! \ud83d\ude00", Talk(), **SHORT)
    assert isinstance(done, Talk)
    assert done.messages[0]["content"] == "Hi \ufffd! \U0001f600"
    assert "Hi \ufffd! \U0001f600" in done.html
    *_, failed = ask(service, "Hi \ud83d", Talk(), verifier="blockwise")
    assert isinstance(failed, Failed)
    assert failed.message == "Hi \ufffd"
    failed.html.encode()


def test_side_by_side_both_answer_the_same_conversation(service: Service) -> None:
    service.begin("tab")
    *_, done = service.answer("tab", "Hello", Talk(), {"temperature": 0.0, "max_new_tokens": 12}, side_by_side=True)
    assert len(done.messages) == 2
    texts = done.html.split('<div class="text">')[1:]
    plain = [part.split("</div>")[0].replace("</mark>", "") for part in texts]
    assert len(plain) == 2
    # At temperature 0 they say the same, in other shades.
    assert "<mark" not in plain[1]
    shown = plain[0].replace('<mark class="d1">', "").replace('<mark class="d2">', "").replace('<mark class="d3">', "")
    assert shown == plain[1]


def test_stop_ends_the_answer_and_keeps_what_was_said(service: Service) -> None:
    service.begin("tab")
    shown = service.answer("tab", "Go on.", Talk(), LONG, side_by_side=False)
    while service.chat_model.rounds < 20:
        next(shown)
    service.stop("tab")
    *_, done = shown
    assert isinstance(done, Talk)
    assert "stopped" in done.html
    assert service.chat_model.rounds < ENDLESS // 4
    assert done.messages[1]["content"]


def test_an_answer_nobody_looks_at_any_more_ends(service: Service) -> None:
    service.begin("tab")
    shown = service.answer("tab", "Go on.", Talk(), LONG, side_by_side=False)
    while service.chat_model.rounds < 20:
        next(shown)
    shown.close()
    *_, done = ask(service, "Next?", Talk(), **SHORT)
    assert isinstance(done, Talk)
    assert service.chat_model.rounds < ENDLESS // 4
    assert service.running == {}


def test_a_session_that_left_before_its_turn_is_not_answered(service: Service) -> None:
    service.begin("tab")
    service.leave("tab")
    assert list(service.answer("tab", "Hello", Talk(), SHORT, side_by_side=False)) == []


def test_one_message_of_a_session_at_a_time(service: Service) -> None:
    service.begin("tab")
    shown = service.answer("tab", "Go on.", Talk(), LONG, side_by_side=False)
    next(shown)
    service.begin("other tab")
    with pytest.raises(InputError, match="still being written"):
        service.begin("tab")
    shown.close()
    service.begin("tab")


def test_an_answer_that_was_never_asked_for_does_not_lock_its_session(service: Service) -> None:
    """As where the page's settings are refused between the message and its answer."""
    service.begin("tab")
    assert isinstance(ask(service, "Hello", Talk(), **SHORT)[-1], Talk)
    assert (service.announced, service.running) == ({}, {})


def test_a_message_stopped_before_its_answer_began_is_not_answered_at_length(service: Service) -> None:
    service.begin("tab")
    service.stop("tab")
    *_, done = service.answer("tab", "Go on.", Talk(), LONG, side_by_side=False)
    assert "stopped" in done.html
    assert service.chat_model.rounds == 0


def test_failures_are_told_without_details_and_the_next_message_is_answered(service: Service) -> None:
    (refused,) = ask(service, "Hello", Talk(), verifier="blockwise")
    assert isinstance(refused, Failed)
    assert "needs tree=&#x27;chain&#x27;" in refused.html
    service.chat_model.failing = True
    *_, failed = ask(service, "Hello", Talk())
    assert isinstance(failed, Failed)
    assert "RuntimeError" in failed.html
    assert "secret" not in failed.html
    service.chat_model.failing = False
    assert isinstance(ask(service, "Hello", Talk(), **SHORT)[-1], Talk)
