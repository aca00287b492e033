"""Answers by the target itself: what is made, resumed and refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
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
from eagle.model.identity import base_identity
from eagle.train.answers import Answer, read_answers
from eagle.train.generate import GenerateSettings, generate
from tests.tiny import make_chat_pair, stock_model

REPOSITORY = Path(__file__).parents[2]
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
    several = replace(settings, workers=2)
    generate(replace(several, tokens=150))
    some = made(several)
    assert 150 <= sum(len(answer.answer) for answer in some.values()) < 150 + 8 * 24
    generate(several)
    alone = replace(settings, out=tmp_path / "alone")
    generate(alone)
    assert made(several) == made(alone)
    assert some.items() <= made(alone).items()


def test_a_killed_process_is_told_and_its_answers_are_made_later(settings: GenerateSettings) -> None:
    several = replace(settings, workers=2, max_new_tokens=200)

    def kill() -> None:
        while not made_so_far(settings):
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
    generate(several)
    assert len(made(settings)) == 40


def made_so_far(settings: GenerateSettings) -> int:
    assert settings.out is not None
    return sum(file.read_bytes().count(b"\n") for file in (settings.out / "answers").glob("*.jsonl"))


def test_a_killed_run_resumes_to_what_it_would_have_made(
    settings: GenerateSettings, questions: Path, tmp_path: Path
) -> None:
    long = replace(settings, max_new_tokens=200)
    program = (
        "from pathlib import PosixPath; from eagle import assets\n"
        f"assets.QUESTIONS = {questions!r}\n"
        "from eagle.train.generate import generate, GenerateSettings\n"
        f"generate({long!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY)
    assert settings.out is not None
    shard = settings.out / "answers" / "answers-00000.jsonl"
    for _ in range(6000):
        if shard.is_file() and shard.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    # What a kill in the middle of a write leaves.
    with max(shard.parent.glob("*.jsonl")).open("ab") as torn:
        torn.write(b'{"key":"torn","prompt":[1,')
    there = made(long)
    assert 3 <= len(there) < 40
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
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        GenerateSettings(**change)
