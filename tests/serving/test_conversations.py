"""Conversations with the server: what it remembers of their earlier turns, and that nothing grows without bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from eagle.chat_template import chat_ids
from eagle.model.ea_model import EaModel
from eagle.text import INCOMPLETE, token_bytes
from tests.serving.servers import PATIENCE, Running, server
from tests.tiny import load_pair, make_chat_pair

MIB = 2**20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_chat_pair(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def arguments(pair: tuple[Path, Path]) -> list[str]:
    return ["--base-model-path", str(pair[0]), "--ea-model-path", str(pair[1]), "--dtype", "float64", "--name", "tiny"]


@pytest.fixture(scope="module")
def running(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server(arguments, tmp_path_factory.mktemp("logs"), "--compile", "off") as found:
        yield found


@pytest.fixture(scope="module")
def model(pair: tuple[Path, Path]) -> EaModel:
    return load_pair(*pair)


def asked(running: Running, messages: list[dict[str, str]], **how: Any) -> dict[str, Any]:
    body = {"messages": messages, "temperature": 0, "max_tokens": 40, "stop": "\x00"} | how
    return running.post(body).json()


def talk(running: Running, model: EaModel, first: str, **how: Any) -> list[int]:
    """Three turns, each compared with the model's own text; returns how many tokens of each prompt were remembered."""
    messages, remembered = [{"role": "user", "content": first}], []
    for _ in range(3):
        reply = asked(running, messages, **how)
        ids = chat_ids(model.tokenizer, messages)
        new = model.naivegenerate(ids, max_new_tokens=40)[0, ids.shape[1] :]
        text = reply["choices"][0]["message"]["content"]
        assert text == model.tokenizer.decode(new, skip_special_tokens=True)
        details = reply["usage"]["prompt_tokens_details"]
        assert details["cached_tokens"] <= reply["usage"]["prompt_tokens"] == ids.shape[1]
        remembered.append(details["cached_tokens"])
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
    return remembered


def test_turns_that_are_remembered_are_the_models(running: Running, model: EaModel) -> None:
    remembered = talk(running, model, "Tell me of ships and shoes and sealing wax.")
    assert remembered[0] < 32 <= remembered[1] < remembered[2]
    # The same conversation once more, and several texts of one prompt, whose tokens are counted once.
    assert talk(running, model, "Tell me of ships and shoes and sealing wax.", n=2)[0] >= 32
    metrics = httpx.get(f"{running.url}/metrics", timeout=PATIENCE).text
    assert "eagle_remembered_prompt_tokens_total" in metrics


def test_without_a_prompt_cache_nothing_is(arguments: list[str], model: EaModel, tmp_path: Path) -> None:
    with server(arguments, tmp_path, "--compile", "off", "--prompt-cache-gib", "0") as running:
        assert talk(running, model, "Tell me of cabbages and kings, please.") == [0, 0, 0]


def test_a_server_that_was_killed_is_started_again(arguments: list[str], model: EaModel, tmp_path: Path) -> None:
    """In the middle of a stream; on the same port; the same client goes on."""
    with server(arguments, tmp_path, "--compile", "off") as running:
        port, client = int(running.url.rpartition(":")[2]), running.client
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Tell me."}], max_tokens=500, n=8, stream=True
        )
        next(iter(stream))
        running.process.kill()
        with pytest.raises((openai.APIConnectionError, httpx.HTTPError)):
            list(stream)
    with server(arguments, tmp_path, "--compile", "off", port=port) as again:
        assert talk(again, model, "Tell me of ships and shoes.")[2] >= 32
        assert client.models.list().data[0].id == "tiny"


def test_memory_is_flat_under_load(arguments: list[str], tmp_path: Path) -> None:
    """Conversations that are all different, far more than are remembered, texts that are given up, bad requests."""
    with server(arguments, tmp_path, "--compile", "off", "--prompt-cache-gib", "0.001") as running:
        process, sizes = psutil.Process(running.process.pid), []
        for number in range(240):
            messages = [{"role": "user", "content": f"{number} " * (number % 60 + 1)}]
            assert asked(running, messages, max_tokens=6)["usage"]["completion_tokens"] > 0
            if number % 6 == 0:
                assert running.post({"messages": []}).status_code == 400
            if number % 24 == 0:
                with httpx.stream(
                    "POST", f"{running.url}/v1/chat/completions", json={"messages": messages, "stream": True, "n": 8}
                ) as reply:
                    next(reply.iter_lines())
            sizes.append(process.memory_info().rss)
        assert max(sizes[-40:]) - max(sizes[60:100]) < 16 * MIB


def test_bytes_of_tokens_that_are_parts_of_characters(running: Running, model: EaModel) -> None:
    tokenizer = model.tokenizer
    text = "a\u20ac\u00e9"
    assert b"".join(token_bytes(tokenizer, token) or b"" for token in tokenizer(text).input_ids) == text.encode()
    reply = asked(running, [{"role": "user", "content": text}], temperature=1, logprobs=True, top_logprobs=3)
    told = reply["choices"][0]["logprobs"]["content"]
    assert all(each["bytes"] is not None for each in told)
    # Of a random model's bytes most are no characters.
    incomplete = [each["bytes"] for each in told if INCOMPLETE in each["token"]]
    assert incomplete
    assert all(each != list(INCOMPLETE.encode()) for each in incomplete)
