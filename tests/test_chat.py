"""The terminal chat as people use it: through a pseudo-terminal."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from safetensors.torch import load_file, save_file

from eagle import chat
from eagle.application.conversation import add_chat_arguments, chat_model_of
from eagle.application.streaming import OWN, Piece
from tests.application.endless import ENDLESS, make_endless_pair
from tests.signals import interruptible
from tests.tiny import CHAT_TEMPLATE, make_chat_pair

PATIENCE = 300
SHADE = re.compile("\x1b\\[38;2;255;255;255;48;2;\\d+;\\d+;\\d+m")
FIGURES = r"\[\d+ tokens? · [\d.]+ tokens/s · tau [\d.]+"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base, head = make_chat_pair(tmp_path_factory.mktemp("chat"))
    return ["--base-model-path", str(base), "--ea-model-path", str(head), "--device", "cpu", "--seed", "3"]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[pexpect.spawn]:
    """The program with a model whose answers do not end by themselves."""
    variables = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "eagle.chat", *make_endless_pair(tmp_path), "--max-new-token", str(ENDLESS)],
        env=variables | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(40, 200),
        preexec_fn=interruptible,
    )
    yield child
    child.close(force=True)


def test_a_conversation_in_a_terminal(terminal: pexpect.spawn) -> None:
    terminal.expect("HSD · temperature 1 · /help")
    terminal.expect("> ")
    terminal.sendline("Tell me of whales.")
    terminal.expect(SHADE)
    terminal.sendintr()
    terminal.expect(FIGURES + r" · stopped\]")

    for line, shown in (
        ("/hsd off", r"\[EAGLE-3 · temperature 1\]"),
        ("/hsd", r"\[HSD · temperature 1\]"),
        ("/top_p 0.9", r"\[HSD · temperature 1 · top_p 0.9\]"),
        ("/tree chain", r"\[chain tree, hsd · temperature 1 · top_p 0.9\]"),
        ("/tree auto", r"\[HSD · "),
        ("/temperature warm", "error: a number has to follow"),
        ("/temperature -1", "error: temperature must be"),
        ("/top_p 2", "error: top_p must lie"),
        ("/tree bush", "error: tree must be one of"),
        ("/tree", "error: which"),
        ("/hsd perhaps", "error: /hsd on or /hsd off"),
        ("/nonsense", "error: there is no /nonsense"),
        ("/", "error: there is no /"),
        # What was refused changed nothing.
        ("/temperature 0.8", r"\[HSD · temperature 0.8 · top_p 0.9\]"),
        ("/help", "Ctrl-C stops an answer"),
    ):
        terminal.expect("> ")
        terminal.sendline(line)
        terminal.expect(shown)

    terminal.expect("> ")
    terminal.sendline("Go on for ever.")
    terminal.expect("ever\\.\r\n")
    terminal.expect(SHADE)
    terminal.sendintr()
    terminal.expect(FIGURES + r" · stopped\]")
    terminal.expect("> ")
    terminal.sendintr()
    terminal.expect("Ctrl-D or /quit ends")
    terminal.expect("> ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_a_pipe_gets_no_colours_and_no_prompt(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eagle.chat", *arguments, "--max-new-token", "20"],
        input=b"Hello\n\n/nonsense\n" + 3000 * b"x" + b"\nHel\xfflo\n",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
    assert b"\n> " not in done.stdout
    assert len(re.findall(rb"tokens/s", done.stdout)) == 2
    nonsense, too_long = done.stderr.decode().splitlines()[-2:]
    assert nonsense.startswith("error: there is no /nonsense")
    assert "leaves no room" in too_long


def test_a_full_context_names_the_ways_out_that_there_are(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = 1500 * "x"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{long}{long}\n{long}\n{long}\n/reset\nHello\n"))
    assert chat.main([*arguments, "--max-new-token", "5"]) == 0
    printed = capsys.readouterr()
    alone, behind = (line for line in printed.err.splitlines() if line.startswith("error: "))
    # A message that is too long by itself does not become shorter in a new conversation.
    assert re.fullmatch(r"error: the prompt of 30\d\d tokens .* context of 2048; send a shorter message", alone)
    assert behind.endswith("context of 2048; send a shorter message, or begin a new conversation with /reset")
    assert len(re.findall(FIGURES, printed.out)) == 2


def test_a_conversation_that_the_template_no_longer_takes_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = "{% if messages | length > 1 %}{{ raise_exception('One message only') }}{% endif %}"
    base, head = make_chat_pair(tmp_path, twice + CHAT_TEMPLATE)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nHello\n"))
    paths = ["--base-model-path", str(base), "--ea-model-path", str(head), "--device", "cpu"]
    assert chat.main([*paths, "--max-new-token", "5"]) == 0
    assert "One message only; begin a new conversation with /reset\n" in capsys.readouterr().err


def test_an_empty_answer_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that ends every text at once: all tokens are as likely, the first one ends, and is no text."""
    base, head = make_chat_pair(tmp_path)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"].zero_()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    file = base / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [0, 1]}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAnd now?\n"))
    paths = ["--base-model-path", str(base), "--ea-model-path", str(head), "--device", "cpu", "--temperature", "0"]
    assert chat.main(paths) == 0
    printed = capsys.readouterr()
    assert "error" not in printed.err
    _, *shown = printed.out.splitlines()
    assert [re.sub("[0-9.]+ tokens/s", "", line) for line in shown] == ["[1 token · ]"] * 2


def test_a_system_prompt_that_cannot_be_used_is_said_before_the_first_message(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    # What Python makes of a byte that is no text.
    assert chat.main([*arguments, "--system-prompt", "Be \udcff"]) == 2
    printed = capsys.readouterr()
    assert printed.err.endswith(
        "error: --system-prompt: the conversation holds U+DCFF, which is only half a character; take it out\n"
    )
    assert printed.out == ""


def test_what_is_pasted_with_half_a_character_is_answered(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi \ud83d\n"))
    assert chat.main([*arguments, "--max-new-token", "5"]) == 0
    printed = capsys.readouterr()
    assert "error" not in printed.err
    assert len(re.findall(r"tokens? · ", printed.out)) == 1


def test_arguments_reach_the_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    switch = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    base, head = make_chat_pair(tmp_path, CHAT_TEMPLATE + switch)
    paths = ["--base-model-path", str(base), "--ea-model-path", str(head), "--device", "cpu"]
    told = chat_model_of(parsed([*paths, "--chat-template-kwargs", '{"enable_thinking": false}']))
    text = told.tokenizer.decode(told.prompt([{"role": "user", "content": "Hello"}])[0])
    assert text == "<s>user: Hello</s><s>assistant: <think></think>"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert chat.main([*paths, "--chat-template-kwargs", '{"thinking": false}']) == 2
    assert "does not read 'thinking'" in capsys.readouterr().err


def parsed(argv: list[str]) -> argparse.Namespace:
    parse = argparse.ArgumentParser()
    add_chat_arguments(parse)
    return parse.parse_args(argv)


def test_a_new_conversation_forgets_the_old_one(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a seed the same conversation has the same answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nHello\n/reset\nHello\n/quit\nHello\n"))
    assert chat.main([*arguments, "--max-new-token", "20"]) == 0
    first, second, third, rest = re.split(rf"(?:{FIGURES}.*\]\n)(?:\[a new conversation\]\n)?", capsys.readouterr().out)
    assert first.endswith(third)
    assert second not in first
    assert rest == ""


@pytest.mark.parametrize(
    ("terminal", "environment", "shown"),
    [
        (True, {"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "\x1b[38;2;255;255;255;48;2;16;58;62ma\x1b[0m\n"),
        (True, {"TERM": "xterm-256color"}, "\x1b[38;5;231;48;5;23ma\x1b[0m\n"),
        (True, {"TERM": "xterm-256color", "NO_COLOR": "1"}, "a\n"),
        (True, {"TERM": "dumb"}, "a\n"),
        (False, {"TERM": "xterm-256color"}, "a\n"),
    ],
)
def test_colours_are_those_the_terminal_has(terminal: bool, environment: dict[str, str], shown: str) -> None:
    class Out(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    out = Out()
    screen = chat.Screen(out, environment)
    screen.piece(Piece("a\n", 1))
    screen.piece(Piece("own", OWN))
    assert out.getvalue() == shown + "own"


def test_text_cannot_steer_the_terminal() -> None:
    assert chat.without_control("a\x1b[2Jb\r\x9bc\n\td\u00a0é") == "a\ufffd[2Jb\ufffd\ufffdc\n\td\u00a0é"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--temperature", "-1"], "error: temperature must be"),
        (["--verifier", "blockwise"], "error: verifier 'blockwise' is for a single chain"),
        (["--max-new-token", "0"], "error: new tokens must be 1 or more"),
        (["--seed", "-1"], "error: --seed must be 0 or more"),
        (["--chat-template-kwargs", "off"], "error: --chat-template-kwargs must be a JSON object"),
        (["--base-model-path", "/nowhere", "--ea-model-path", "/nowhere"], "error: "),
    ],
)
def test_wrong_arguments_are_one_line(
    wrong: list[str], why: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat.main([*arguments, *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith(why)
    assert len(error.splitlines()) == 1


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = make_chat_pair(tmp_path, None)
    assert chat.main(["--base-model-path", str(base), "--ea-model-path", str(head), "--device", "cpu"]) == 2
    assert "has no chat template" in capsys.readouterr().err
