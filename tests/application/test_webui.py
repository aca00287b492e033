"""The page as people use it: the program, and a real browser on it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagle.application import webui
from eagle.application.conversation import ChatModel, ChatSettings
from eagle.application.html import Answer, error_html, escape, piece_html, turn_html
from eagle.application.service import Service
from eagle.application.streaming import OWN, Piece, Statistics, Update
from tests.application.endless import ENDLESS, make_endless_pair
from tests.signals import interruptible
from tests.tiny import load_pair, make_chat_pair

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 300_000
"""Milliseconds, of which a busy machine takes many."""
HOSTILE = """<img src=x onerror="document.title='owned'"> {{value}} ${document.title='owned'} `a` \\n **b** &amp;"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_endless_pair(tmp_path_factory.mktemp("chat"))


def test_text_is_escaped_and_marked_by_its_depth() -> None:
    assert piece_html(Piece(" <b>", 2)) == ' <mark class="d2">&lt;b&gt;</mark>'
    assert piece_html(Piece("\n", 1)) == '<mark class="d1">\n</mark>'
    assert piece_html(Piece("far", 40)) == '<mark class="d6">far</mark>'
    assert piece_html(Piece("a & b", OWN)) == "a &amp; b"
    for html in (escape(HOSTILE), turn_html(HOSTILE, []), error_html(HOSTILE, HOSTILE)):
        assert not re.search(r"<img|\{|\}|\$|`|\\", html)


def test_an_answer_shows_its_figures_and_the_speed_up() -> None:
    answer = Answer("HSD")
    assert "waiting" in answer.html()
    answer.state = "running"
    answer.add(Update((Piece(" It", OWN), Piece(" is", 1)), Statistics(2, 1, 1, 0.5), finished=False))
    assert answer.text == "It is"
    shown = answer.html(Statistics(1, 1, 0, 0.5))
    assert "2 tokens · 4.0 tokens/s · tau 2.00 · 2.00x as fast" in shown
    answer.state = "stopped"
    assert "stopped" in answer.html()


def test_the_sliders_take_the_settings_the_page_began_with(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio", reason="needs Gradio (pip install 'eagle-hsd[app]')")
    from eagle.application.page import build

    settings = ChatSettings(temperature=2.5, top_p=0.9, max_new_tokens=5000)
    service = Service(ChatModel(load_pair(*make_chat_pair(tmp_path))), settings)
    sliders = [block for block in build(service).blocks.values() if isinstance(block, gradio.Slider)]
    assert [slider.preprocess(slider.value) for slider in sliders] == [2.5, 0.9, 5000]
    service.close()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--temperature", "-1"], "error: temperature must be"),
        (["--tree", "bush"], "error: tree must be one of"),
        (["--port", "0"], "error: --port must be 1 to 65535"),
    ],
)
def test_wrong_arguments_are_one_line(
    wrong: list[str], why: str, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert webui.main([*pair, *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith(why)
    assert len(error.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert webui.main([*pair, "--port", str(taken.getsockname()[1])]) == 2
    assert "taken; choose another with --port" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(pair: list[str]) -> Iterator[str]:
    pytest.importorskip("gradio")
    program = subprocess.Popen(
        [sys.executable, "-m", "eagle.application.webui", *pair, "--max-new-token", str(ENDLESS), "--seed", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True"},  # noqa: S104  # shall be ignored
        preexec_fn=interruptible,
    )
    assert program.stdout is not None
    line = program.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    if found is None:
        program.kill()
        pytest.fail(f"the page did not start: {line}{program.communicate()[1]}")
    yield found.group()
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate()
    assert program.returncode in (0, 130)
    assert "Traceback" not in errors


@pytest.fixture
def tab(address: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    if not CHROMIUM.is_file():
        pytest.skip(f"needs Chromium at {CHROMIUM} (apt-get install chromium)")
    strangers: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE)
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else strangers.append(asked.url),
        )
        page.goto(address)
        page.wait_for_selector("#box textarea")
        yield page
        browser.close()
    assert strangers == []


def say(page: Any, message: str, finished: int) -> None:
    """Send a message, to be answered shortly, and wait until so many answers are finished."""
    longest = page.get_by_label("number input for New tokens at most")
    longest.fill("60")
    longest.press("Tab")
    page.fill("#box textarea", message)
    page.click("#send")
    page.wait_for_function(f"document.querySelectorAll('#history .answer').length == {finished}")
    page.wait_for_selector("#send", state="visible")


@pytest.mark.slow
def test_a_conversation(tab: Any) -> None:
    say(tab, HOSTILE, finished=1)
    assert tab.inner_text("#history .message") == HOSTILE
    assert tab.title() == "EAGLE-3 and HSD"
    assert tab.inner_text("#history .answer h4") == "HSD"
    assert tab.locator("#history .answer mark").count() > 0
    footer = tab.inner_text("#history .answer footer")
    assert re.match(r"\d+ tokens? · [\d.]+ tokens/s · tau [\d.]+$", footer)

    tab.uncheck("#hsd input")
    say(tab, "Second", finished=2)
    assert tab.locator("#history .answer h4").all_inner_texts() == ["HSD", "EAGLE-3"]

    tab.check("#side input")
    say(tab, "Third", finished=4)
    assert tab.locator("#history .answer h4").all_inner_texts()[2:] == ["EAGLE-3", "Autoregressive"]
    drafted, plain = tab.locator("#history .answer").nth(2), tab.locator("#history .answer").nth(3)
    assert plain.locator("mark").count() == 0
    assert "x as fast" in drafted.inner_text()
    assert drafted.bounding_box()["y"] == plain.bounding_box()["y"]

    tab.click("#clear")
    tab.wait_for_selector("#current .welcome")
    assert tab.inner_text("#history") == ""


@pytest.mark.slow
def test_what_cannot_be_answered_is_said_and_can_be_sent_again(tab: Any) -> None:
    tab.click("#ablations button")
    tab.click("#verification input")
    tab.click("[role=option]:has-text('blockwise')")
    tab.fill("#box textarea", "Hello")
    tab.press("#box textarea", "Enter")
    assert "needs tree='chain'" in tab.inner_text("#current [role=alert]")
    assert "Traceback" not in tab.inner_text("body")
    tab.wait_for_selector("#send", state="visible")
    assert tab.input_value("#box textarea") == "Hello"

    tab.click("#tree input")
    tab.click("[role=option]:has-text('chain')")
    say(tab, "Hello", finished=1)
    assert tab.inner_text("#history .answer h4") == "chain tree, blockwise"
    assert tab.locator("[role=alert]:visible").count() == 0

    say_nothing = tab.locator("#box textarea")
    say_nothing.fill("  ")
    say_nothing.press("Enter")
    tab.wait_for_selector("text=Write a message first.")


@pytest.mark.slow
def test_a_full_context_and_half_a_character_are_no_end_of_a_conversation(tab: Any) -> None:
    paste = "(box, text) => { box.value = text; box.dispatchEvent(new Event('input', {bubbles: true})) }"
    half = "(box) => (" + paste + ")(box, 'Hi \\ud83d')"
    tab.locator("#box textarea").evaluate(half)
    longest = tab.get_by_label("number input for New tokens at most")
    longest.fill("5")
    longest.press("Tab")
    tab.click("#send")
    tab.wait_for_selector("#history .answer.finished")
    assert tab.inner_text("#history .message") == "Hi \ufffd"
    tab.wait_for_selector("#send", state="visible")

    tab.locator("#box textarea").evaluate(paste, 70_000 * "x")
    tab.click("#send")
    refused = tab.inner_text("#current [role=alert]")
    assert refused.endswith("send a shorter message, or press “New conversation”")
    assert tab.inner_text("#clear") == "New conversation"


@pytest.mark.slow
def test_tabs_take_turns_and_stop_stops(tab: Any, address: str) -> None:
    """No answer ends by itself, so what ends was stopped."""
    other = tab.context.new_page()
    other.set_default_timeout(PATIENCE)
    other.goto(address)
    other.wait_for_selector("#box textarea")

    tab.fill("#box textarea", "Go on for ever.")
    tab.click("#send")
    tab.wait_for_selector("#current .answer.running")
    other.fill("#box textarea", "And I?")
    other.click("#send")
    other.wait_for_selector("#current .answer.waiting")
    assert "waiting" in other.inner_text("#current footer")

    tab.click("#stop")
    tab.wait_for_selector("#history .answer.stopped")
    assert "stopped" in tab.inner_text("#history footer")
    other.wait_for_selector("#current .answer.running")
    other.click("#stop")
    other.wait_for_selector("#history .answer.stopped")

    # A tab that is closed takes its answer with it.
    tab.fill("#box textarea", "Again.")
    tab.click("#send")
    tab.wait_for_selector("#current .answer.running")
    tab.close()
    say(other, "Now?", finished=2)
