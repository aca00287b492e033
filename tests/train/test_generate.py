"""Answers by the target itself: what is made, resumed and refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from eagle import assets
from eagle.errors import InputError
from eagle.identity import base_identity
from eagle.train.answers import Answer, read_answers
from eagle.train.generate import GenerateSettings, generate
from tests.processes import run_until_killed, written
from tests.tiny import CHAT_TEMPLATE, make_chat_pair, stock_model

QUESTION = {
    "question_id": 1,
    "turns": ["What is the largest river that flows to the north of the old town of Bern now?"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_pair(tmp_path_factory.mktemp("generate"))[0]


@pytest.fixture(autouse=True)
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark of one question in place of MT-Bench, which needs the network."""
    file = tmp_path / "question.jsonl"
    file.write_text(json.dumps(QUESTION) + "\n")
    monkeypatch.setattr(assets, "QUESTIONS", file)
    return file


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> GenerateSettings:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Say {number} " + "again " * (number % 7)} for number in range(40)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return GenerateSettings(
        base_model_path=str(base),
        out=tmp_path / "out",
        dtype="float64",
        device="cpu",
        prompts=str(prompts),
        max_new_tokens=24,
        batch_size=6,
        workers=1,
        shard_size=7,
    )


def made(settings: GenerateSettings) -> dict[str, Answer]:
    assert settings.out is not None
    answers = read_answers(settings.out / "answers")
    by_key = {answer.key: answer for answer in answers}
    assert len(by_key) == len(answers)
    return by_key


def test_answers_are_what_the_target_says(settings: GenerateSettings, base: Path) -> None:
    generate(settings)
    answers = made(settings)
    assert len(answers) == 40
    stock = stock_model(base)
    temperatures = Counter(answer.temperature for answer in answers.values())
    assert set(temperatures) == {1.0, 0.6, 0.0}
    assert max(temperatures, key=temperatures.__getitem__) == 1.0
    for answer in answers.values():
        assert answer.finished == (answer.answer[-1] == 1)
        assert 1 not in answer.answer[:-1]
        assert answer.finished or len(answer.answer) == 24
        if answer.temperature == 0:
            prompt = torch.tensor([answer.prompt])
            greedy = stock.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24, pad_token_id=1
            )
            assert greedy[0, prompt.shape[1] :].tolist() == answer.answer
    assert any(answer.finished for answer in answers.values())
    assert settings.out is not None
    config = yaml.safe_load((settings.out / "answers" / "config.yaml").read_text())
    assert config["base_model_sha256"] == base_identity(str(base))
    assert (config["dtype"], config["temperatures"], config["seed"]) == ("float64", [1.0, 0.6, 0.0], 0)


def test_prompts_go_through_the_chat_template(settings: GenerateSettings, base: Path) -> None:
    generate(replace(settings, limit=3))
    tokenizer = AutoTokenizer.from_pretrained(base)
    for answer in made(replace(settings, limit=3)).values():
        text = tokenizer.decode(answer.prompt)
        assert text.startswith("<s>user: Say ")
        assert text.endswith("</s><s>assistant: ")


def test_arguments_reach_the_chat_template_and_may_not_change_half_way(
    settings: GenerateSettings, tmp_path: Path
) -> None:
    switch = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    base = make_chat_pair(tmp_path / "thinking", CHAT_TEMPLATE + switch)[0]
    few = replace(settings, base_model_path=str(base), limit=2, chat_template_kwargs='{"enable_thinking": false}')
    generate(few)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for answer in made(few).values():
        assert tokenizer.decode(answer.prompt).endswith("<s>assistant: <think></think>")
    with pytest.raises(InputError, match=r"chat_template_kwargs=\{'enable_thinking': False\}, this run has None"):
        generate(replace(few, limit=4, chat_template_kwargs=None))
    generate(replace(few, limit=4, chat_template_kwargs=' {"enable_thinking":false}'))
    assert len(made(few)) == 4


def test_answers_of_a_version_without_template_arguments_go_on(settings: GenerateSettings) -> None:
    generate(replace(settings, limit=2))
    assert settings.out is not None
    file = settings.out / "answers" / "config.yaml"
    recorded = yaml.safe_load(file.read_text())
    del recorded["chat_template_kwargs"]
    file.write_text(yaml.safe_dump(recorded))
    generate(replace(settings, limit=3))
    assert len(made(settings)) == 3


def test_a_limit_can_be_raised_and_nothing_is_done_twice(
    settings: GenerateSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(replace(settings, limit=9))
    first = made(settings)
    assert len(first) == 9
    generate(replace(settings, limit=9))
    assert made(settings) == first
    assert "9 answers of" in capsys.readouterr().err
    # Of another batch size, and with other shards: neither shapes the text.
    generate(replace(settings, batch_size=3, shard_size=100))
    whole = replace(settings, out=tmp_path / "whole")
    generate(whole)
    assert made(settings) == made(whole)


def test_a_number_of_tokens_ends_the_run(settings: GenerateSettings) -> None:
    few = replace(settings, tokens=150, batch_size=2)
    generate(few)
    total = sum(len(answer.answer) for answer in made(few).values())
    # The texts that are in the making then are finished.
    assert 150 <= total < 150 + 2 * 24
    generate(few)
    assert sum(len(answer.answer) for answer in made(few).values()) == total


def test_several_processes_make_the_same_answers(settings: GenerateSettings, tmp_path: Path) -> None:
    generate(replace(settings, workers=2, tokens=400))
    some = made(settings)
    assert 400 <= sum(len(answer.answer) for answer in some.values()) < 400 + 8 * 24
    # What one began, another number of processes ends.
    generate(settings)
    alone = replace(settings, out=tmp_path / "alone")
    generate(alone)
    assert made(settings) == made(alone)
    assert some.items() < made(alone).items()


def test_a_killed_process_is_told_and_its_answers_are_made_later(settings: GenerateSettings) -> None:
    several = replace(settings, workers=2, max_new_tokens=200)

    def kill() -> None:
        assert settings.out is not None
        while not written(settings.out / "answers" / "*.jsonl"):
            time.sleep(0.01)
        children = multiprocessing.active_children()
        os.kill(next(child.pid for child in children if child.pid), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InputError, match="ended with signal 9"):
        generate(several)
    killer.join()
    assert not multiprocessing.active_children()
    assert 0 < len(made(settings)) < 40
    generate(replace(several, workers=1))
    assert len(made(settings)) == 40


def generate_without(questions: Path, settings: GenerateSettings) -> None:
    """``generate``, in a process that has to be told what takes MT-Bench's place."""
    assets.QUESTIONS = questions
    generate(settings)


def test_a_killed_run_resumes_to_what_it_would_have_made(
    settings: GenerateSettings, questions: Path, tmp_path: Path
) -> None:
    long = replace(settings, max_new_tokens=200)
    assert settings.out is not None
    shards = settings.out / "answers" / "answers-*.jsonl"
    # Behind the first shard and a line of the second.
    run_until_killed(shards, 8, generate_without, questions, long)
    # What a kill in the middle of a write leaves.
    with max(shards.parent.glob("*.jsonl")).open("ab") as torn:
        torn.write(b'{"key":"torn","prompt":[1,')
    there = made(long)
    assert len(there) == 8
    generate(long)
    whole = replace(long, out=tmp_path / "whole")
    generate(whole)
    assert made(long) == made(whole)
    assert len(made(long)) == 40


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 3}, "seed=0, this run has 3"),
        ({"temperatures": (1.0, 0.5, 0.0)}, r"temperatures=\[1.0, 0.6, 0.0\], this run has \[1.0, 0.5, 0.0\]"),
        ({"dtype": "float32"}, "dtype='float64', this run has 'float32'"),
        ({"max_new_tokens": 5}, "max_new_tokens=24, this run has 5"),
    ],
)
def test_other_settings_are_refused(change: dict[str, object], reason: str, settings: GenerateSettings) -> None:
    generate(replace(settings, limit=1))
    with pytest.raises(InputError, match=reason):
        generate(replace(settings, **change))


def test_a_benchmark_question_is_left_out(
    settings: GenerateSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"prompt": "say 3 AGAIN, again; again"}))
    lines = [{"prompt": f"Hey! {QUESTION['turns'][0].upper()} Tell me."}, {"prompt": "Say 3 again again again"}]
    lines += [{"prompt": "What is the largest river that flows to the north of the new fort?"}]
    Path(str(settings.prompts)).write_text("".join(json.dumps(line) + "\n" for line in lines))
    generate(replace(settings, exclude=(str(own),)))
    assert len(made(settings)) == 1
    assert "2 overlap" in capsys.readouterr().err


def test_long_prompts_are_left_out_and_the_context_ends_answers(
    settings: GenerateSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no prompt has at most 5 tokens"):
        generate(replace(settings, max_prompt_tokens=5))
    generate(replace(settings, max_prompt_tokens=45))
    lengths = {len(answer.prompt) for answer in made(settings).values()}
    assert max(lengths) <= 45
    assert 0 < len(made(settings)) < 40
    assert "are longer than 45 tokens" in capsys.readouterr().err


def test_a_text_does_not_outgrow_the_context(settings: GenerateSettings, tmp_path: Path) -> None:
    base = make_chat_pair(tmp_path / "short")[0]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    generate(replace(settings, base_model_path=str(base)))
    answers = made(settings).values()
    assert all(len(answer.prompt) + len(answer.answer) <= 40 for answer in answers)
    assert any(len(answer.prompt) + len(answer.answer) == 40 for answer in answers)


def test_a_prompt_that_the_chat_template_refuses_is_named(settings: GenerateSettings, tmp_path: Path) -> None:
    strict = "{% if 'Say 11' in messages[0]['content'] %}{{ messages[0]['nothing'] + 1 }}{% endif %}"
    base = make_chat_pair(tmp_path / "strict", CHAT_TEMPLATE + strict)[0]
    with pytest.raises(InputError, match=r"^the prompt 'Say 11 .*': the model's chat template refuses") as refused:
        generate(replace(settings, base_model_path=str(base)))
    assert "\n" not in str(refused.value)


def test_answers_go_on_with_the_same_target_wherever_it_is(
    settings: GenerateSettings, base: Path, tmp_path: Path
) -> None:
    generate(replace(settings, limit=3))
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    there = replace(settings, base_model_path=str(moved), limit=6)
    generate(there)
    assert len(made(settings)) == 6
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"was begun with another base model: model.safetensors differs; choose"):
        generate(replace(there, limit=9))
    # An older version recorded where the target was.
    config = tmp_path / "out" / "answers" / "config.yaml"
    config.write_text(config.read_text().replace("base_model_sha256:", "base_model:"))
    with pytest.raises(InputError, match="a version that did not record what its models hold"):
        generate(replace(settings, limit=9))
    assert len(made(settings)) == 6


def test_a_target_without_a_chat_template_is_refused(settings: GenerateSettings, tmp_path: Path) -> None:
    base = make_chat_pair(tmp_path / "plain", chat_template=None)[0]
    with pytest.raises(InputError, match="no chat template"):
        generate(replace(settings, base_model_path=str(base)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"limit": 0}, "--limit must be 1 or more"),
        ({"batch_size": 0}, "--batch-size must be 1 or more"),
        ({"weights": (1.0,)}, "as many --weights as --temperatures"),
        ({"weights": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"temperatures": (1.0, 0.6, -1.0)}, "temperature must be"),
        ({"top_p": 2.0}, "top_p must lie"),
        ({"chat_template_kwargs": "off"}, "must be a JSON object"),
        ({"chat_template_kwargs": '{"tokenize": true}'}, "not for the template"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        GenerateSettings(**change)
