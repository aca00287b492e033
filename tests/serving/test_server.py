"""The server as its users meet it: a real process, the ``openai`` client, ``curl``, and clients that misbehave."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from eagle.chat_template import chat_ids
from eagle.model.ea_model import EaModel
from eagle.serving.__main__ import main
from tests.application.endless import make_endless_pair
from tests.serving.servers import PATIENCE, Running, server
from tests.tiny import load_pair, make_chat_pair

MESSAGES: Any = [{"role": "user", "content": "Tell me."}]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_chat_pair(tmp_path_factory.mktemp("serving"))


def named(pair: tuple[Path, Path]) -> list[str]:
    return ["--base-model-path", str(pair[0]), "--ea-model-path", str(pair[1]), "--dtype", "float64"]


@pytest.fixture(scope="module")
def model(pair: tuple[Path, Path]) -> EaModel:
    return load_pair(*pair)


@pytest.fixture(scope="module")
def running(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with server(named(pair), tmp_path_factory.mktemp("logs"), "--compile", "off", "--name", "tiny") as found:
        yield found


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A pair whose texts do not end by themselves."""
    return make_endless_pair(tmp_path_factory.mktemp("endless"))


def expected(model: EaModel, tokens: int, **how: Any) -> tuple[str, list[int], Any]:
    """Text, new tokens and info of the model alone."""
    ids = chat_ids(model.tokenizer, MESSAGES)
    found, _, _, info = model.naivegenerate(ids, max_new_tokens=tokens, log=True, **how)
    new = found[0, ids.shape[1] :].tolist()
    return model.tokenizer.decode(new, skip_special_tokens=True), new, info


def test_greedy_chats_are_the_models_whatever_the_method(running: Running, model: EaModel) -> None:
    text, new, _ = expected(model, 50)
    for method in ("baseline", "eagle3", "hsd", "lookup/deterministic:tokenwise"):
        found = running.client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, max_tokens=50, extra_body={"method": method}
        )
        assert found.choices[0].message.content == text
        assert found.choices[0].finish_reason == ("length" if len(new) == 50 else "stop")
        assert found.usage is not None
        assert found.usage.completion_tokens == len(new)
        assert found.usage.prompt_tokens == chat_ids(model.tokenizer, MESSAGES).shape[1]
        details = found.usage.completion_tokens_details
        assert details is not None
        assert method != "baseline" or details.accepted_prediction_tokens == 0
        assert bool(details.rejected_prediction_tokens) == (method != "baseline")


def test_a_stream_is_the_same_text_in_pieces(running: Running, model: EaModel) -> None:
    text, new, _ = expected(model, 60)
    stream = running.client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0,
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in chunks[:-1]) == text
    assert len(chunks) > 5
    assert [each.choices[0].finish_reason for each in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(new)


def test_completions_take_texts_and_tokens(running: Running, model: EaModel) -> None:
    prompt = model.tokenizer("Once upon").input_ids
    found = model.naivegenerate(torch.tensor([prompt]), max_new_tokens=30)[0, len(prompt) :].tolist()
    text = model.tokenizer.decode(found, skip_special_tokens=True)
    for given in ("Once upon", prompt, ["Once upon", "Once upon"], [prompt]):
        answer = running.client.completions.create(model="tiny", prompt=given, temperature=0, max_tokens=30)
        assert {each.text for each in answer.choices} == {text}
        assert len(answer.choices) == (2 if given == ["Once upon", "Once upon"] else 1)


def test_a_text_ends_in_front_of_a_stop_string(running: Running, model: EaModel) -> None:
    text, _, _ = expected(model, 60)
    place = next(at for at in range(10, 50) if text[at : at + 2] not in text[: at + 1])
    stop = text[place : place + 2]
    whole = running.client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=60, stop=["nowhere", stop]
    )
    assert whole.choices[0].message.content == text[:place]
    assert whole.choices[0].finish_reason == "stop"
    stream = running.client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=60, stop=stop, stream=True
    )
    assert "".join(each.choices[0].delta.content or "" for each in stream) == text[:place]


def test_a_seed_decides_all_texts(running: Running) -> None:
    def texts(seed: int) -> list[str | None]:
        found = running.client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=1, max_tokens=20, n=2, seed=seed
        )
        assert [each.index for each in found.choices] == [0, 1]
        return [each.message.content for each in found.choices]

    first = texts(5)
    assert first == texts(5)
    assert first[0] != first[1]
    assert first != texts(6)


def test_log_probabilities_are_the_models(running: Running, model: EaModel) -> None:
    _, new, info = expected(model, 25, logprobs=2)
    found = running.client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=25, logprobs=True, top_logprobs=2
    )
    assert found.choices[0].logprobs is not None
    content = found.choices[0].logprobs.content or []
    assert len(content) == len(new)
    for said, own in zip(content, info["logprobs"], strict=True):
        assert said.token == model.tokenizer.decode([own.token])
        assert said.logprob == pytest.approx(own.logprob, abs=1e-6)
        assert [each.logprob for each in said.top_logprobs] == pytest.approx([value for _, value in own.top], abs=1e-6)
    plain = running.client.completions.create(model="tiny", prompt="Once", temperature=0, max_tokens=8, logprobs=1)
    logprobs = plain.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == len(logprobs.token_logprobs or []) == plain.usage.completion_tokens  # type: ignore[union-attr]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_reaches_it(running: Running, model: EaModel) -> None:
    body = json.dumps({"messages": MESSAGES, "temperature": 0, "max_tokens": 20})
    command = ["curl", "-s", f"{running.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["choices"][0]["message"]["content"] == expected(model, 20)[0]
    assert [each.id for each in running.client.models.list()] == ["tiny"]
    metrics = httpx.get(f"{running.url}/metrics", timeout=PATIENCE).text
    for name in ("eagle_requests_total", "eagle_new_tokens_total", "eagle_tau", "eagle_queue", "eagle_stage_seconds"):
        assert name in metrics


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": MESSAGES, "temperature": "hot"}, "temperature"),
    ({"messages": MESSAGES, "temperature": -1}, "temperature"),
    ({"messages": MESSAGES, "top_p": 0}, "top_p"),
    ({"messages": MESSAGES, "n": 9}, "n"),
    ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
    ({"messages": MESSAGES, "max_tokens": 10**9}, "max_tokens"),
    ({"messages": MESSAGES, "model": "gpt-4"}, "model"),
    ({"messages": MESSAGES, "method": "magic"}, "method"),
    ({"messages": MESSAGES, "frequency_penalty": 0.5}, "frequency_penalty"),
    ({"messages": MESSAGES, "logit_bias": {"5": 100}}, "logit_bias"),
    ({"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
    ({"messages": MESSAGES, "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
]


@pytest.mark.parametrize(("body", "field"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_named_in_openais_form(running: Running, body: dict[str, Any], field: str) -> None:
    answer = running.post(body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    assert field.split(".")[0] in error["message"]


def test_what_asks_for_nothing_is_let_pass(running: Running) -> None:
    nothing = {
        "frequency_penalty": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": None,
        "user": "x",
    }
    body = {"messages": MESSAGES, "max_tokens": 3, "tool_choice": "none", "stop": None, **nothing}
    assert running.post(body).status_code == 200


def test_long_prompts_and_large_bodies_are_refused(running: Running) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    answer = running.post({"messages": long})
    assert answer.status_code == 400
    assert "at most 2047 are read" in answer.json()["error"]["message"]
    large = running.post({"messages": [{"role": "user", "content": "x" * 1_100_000}]})
    assert large.status_code == 413
    assert running.post({}, "nowhere").json()["error"]["message"].startswith("POST /v1/nowhere")
    otherwise = httpx.get(f"{running.url}/v1/chat/completions")
    assert (otherwise.status_code, otherwise.headers["allow"]) == (405, "POST")
    assert "GET /v1/chat/completions" in otherwise.json()["error"]["message"]


def test_no_body_whatever_makes_it_fail(running: Running, model: EaModel) -> None:
    """200 bodies made of good ones: cut, nested, with fields of other kinds."""
    source = random.Random(0)  # noqa: S311
    values: list[Any] = [
        None,
        True,
        -1,
        0,
        1e308,
        2**70,
        "",
        "x" * 50,
        [],
        [[]],
        {},
        {"a": 1},
        ["\ud83d"],
        float("nan"),
    ]
    good = {"messages": MESSAGES, "max_tokens": 4, "temperature": 1, "top_p": 0.9, "n": 1, "stop": ["a"], "seed": 1}
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        for number in range(200):
            body = {**good, source.choice([*good, "prompt", "stream_options", "extra"]): source.choice(values)}
            text = json.dumps(body)
            if number % 5 == 0:
                text = text[: source.randrange(len(text))]
            if number % 50 == 7:
                text = "[" * 100_000
            path = source.choice(["chat/completions", "completions"])
            answer = client.post(f"/v1/{path}", content=text.encode("utf-8", "surrogatepass"))
            assert answer.status_code in (200, 400), answer.text
            if answer.status_code == 400:
                assert answer.json()["error"]["message"]
    assert "Traceback" not in running.log.read_text()
    assert (
        running.post({"messages": MESSAGES, "temperature": 0, "max_tokens": 20}).json()["choices"][0]["message"][
            "content"
        ]
        == expected(model, 20)[0]
    )


def test_sixteen_at_once_are_answered_or_sent_away(endless: list[str], tmp_path: Path) -> None:
    with server(endless, tmp_path, "--compile", "off", "--queue", "8") as running:
        # The first one writes until the others have come.
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=LONG, timeout=PATIENCE) as first:
            lines = first.iter_lines()
            next(lines)
            body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}
            with ThreadPoolExecutor(16) as many:
                answers = [many.submit(running.post, body) for _ in range(16)]
                away = 0
                while away < 8:
                    away = sum(each.done() for each in answers)
                    time.sleep(0.01)
                running.until(queue=8, busy=True)
                first.close()
                found = [each.result() for each in answers]
        assert sorted(each.status_code for each in found) == [200] * 8 + [429] * 8
        texts = {each.json()["choices"][0]["message"]["content"] for each in found if each.status_code == 200}
        assert len(texts) == 1
        for each in found:
            if each.status_code == 429:
                assert int(each.headers["Retry-After"]) >= 1
                assert each.json()["error"]["type"] == "rate_limit_error"


LONG = {"messages": MESSAGES, "temperature": 0, "max_tokens": 1024, "n": 8, "stream": True}


def test_a_client_that_goes_frees_its_place(endless: list[str], tmp_path: Path) -> None:
    with server(endless, tmp_path, "--compile", "off") as running:
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=LONG, timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert running.health()["busy"]
        running.until(busy=False, queue=0)
        # And one that waits for all of it at once.
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{running.url}/v1/chat/completions", json=LONG | {"stream": False}, timeout=0.5)
        running.until(busy=False, queue=0)
        assert running.post({"messages": MESSAGES, "max_tokens": 5}).status_code == 200


def test_sigterm_finishes_what_is_written_and_refuses_the_rest(endless: list[str], tmp_path: Path) -> None:
    with server(endless, tmp_path, "--compile", "off") as running:
        with httpx.stream(
            "POST", f"{running.url}/v1/chat/completions", json=LONG | {"n": 1}, timeout=PATIENCE
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            with ThreadPoolExecutor(1) as other:
                waiting = other.submit(running.post, {"messages": MESSAGES, "max_tokens": 5})
                running.until(queue=1)
                running.process.send_signal(signal.SIGTERM)
                refused = waiting.result()
            rest = [line for line in lines if line]
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert running.process.wait(PATIENCE) in (0, -signal.SIGTERM)


def test_elsewhere_a_key_is_needed(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*named(pair), "--host", "0.0.0.0"]) == 2  # noqa: S104
    assert "set EAGLE_API_KEY to a key that clients must show" in capsys.readouterr().err
    with server(named(pair), tmp_path, "--compile", "off", EAGLE_API_KEY="secret") as running:
        assert running.post({"messages": MESSAGES}).status_code == 401
        assert (
            httpx.get(f"{running.url}/v1/models").status_code == httpx.get(f"{running.url}/metrics").status_code == 401
        )
        assert httpx.get(f"{running.url}/health").status_code == 200
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="secret", max_retries=0)
        found = client.chat.completions.create(model="base", messages=MESSAGES, max_tokens=3)
        assert found.choices[0].message.role == "assistant"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="other").models.list()


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--queue", "-1"], "--queue must be 0 or more"),
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--method", "magic"], "a method is eagle3, hsd"),
    ],
)
def test_bad_arguments_are_one_line(
    pair: tuple[Path, Path], wrong: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*named(pair), "--device", "cpu", *wrong]) == 2
    assert complaint in capsys.readouterr().err
