"""Answers that conversations hold already: what is taken, resumed, and trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eagle import assets
from eagle.errors import InputError
from eagle.train.answers import ANSWERS, Answer, read_answers
from eagle.train.given import GivenSettings, take_given
from eagle.train.training import Lessons
from tests.tiny import make_chat_pair
from tests.train.fitting import ready, write_answers

ASKED = "What is the largest river that flows to the north of the old town of Bern now?"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GivenSettings:
    """Two conversations that can be taken from, one without answers, and one about a question of the benchmark."""
    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "turns": [ASKED]}) + "\n")
    monkeypatch.setattr(assets, "QUESTIONS", questions)
    said = [
        ["Say one", "one", "Say two", "two two"],
        ["Say three", "three", "Say four"],
        ["Say five"],
        [ASKED, "The Aare"],
    ]
    roles = ("user", "assistant", "user", "assistant")
    lines = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles[: len(texts)], texts, strict=True)]}
        for texts in said
    ]
    conversations = tmp_path / "conversations.jsonl"
    conversations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base, _ = make_chat_pair(tmp_path)
    return GivenSettings(base_model_path=str(base), out=tmp_path / "given", prompts=str(conversations))


def test_each_answer_is_taken_with_the_chat_up_to_it(settings: GivenSettings) -> None:
    take_given(settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.base_model_path)
    found = {
        tokenizer.decode(answer.prompt): tokenizer.decode(answer.answer)
        for answer in read_answers(settings.folder / ANSWERS)
    }
    assert found == {
        "<s>user: Say one</s><s>assistant: ": "one</s>",
        "<s>user: Say one</s><s>assistant: one</s><s>user: Say two</s><s>assistant: ": "two two</s>",
        "<s>user: Say three</s><s>assistant: ": "three</s>",
    }


def test_more_are_taken_where_there_were_few_and_none_twice(settings: GivenSettings) -> None:
    take_given(replace(settings, tokens=1))
    assert len(read_answers(settings.folder / ANSWERS)) == 1
    take_given(settings)
    answers = read_answers(settings.folder / ANSWERS)
    assert len({answer.key for answer in answers}) == len(answers) == 3
    with pytest.raises(InputError, match="max_new_tokens"):
        take_given(replace(settings, max_new_tokens=2))


def test_long_ones_are_cut_or_left_out(settings: GivenSettings) -> None:
    take_given(replace(settings, max_new_tokens=2, max_prompt_tokens=40))
    answers = read_answers(settings.folder / ANSWERS)
    assert {len(answer.answer) for answer in answers} == {2}
    assert not any(answer.finished for answer in answers)
    assert all(len(answer.prompt) <= 40 and answer.temperature is None for answer in answers)
    with pytest.raises(InputError, match="holds no answers to take"):
        take_given(replace(settings, max_prompt_tokens=1, out=settings.folder / "other"))


def test_they_are_trained_on_but_none_is_held_out(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    alone = Lessons.of(settings, bar=False)
    prompt = alone.held_out[0].tokens[: alone.held_out[0].start]
    given = [
        Answer("held out", prompt, [1, 2, 3], None, True),
        *(Answer(f"{n}", [n] * 9, [1, 2, n], None, True) for n in range(5)),
    ]
    write_answers(tmp_path / "given" / ANSWERS, given)
    both = Lessons.of(replace(settings, also=(tmp_path / "given",)), bar=False)
    assert both.held_out == alone.held_out
    assert both.training[: len(alone.training)] == alone.training
    assert [each.tokens for each in both.training[len(alone.training) :]] == [
        (answer.prompt + answer.answer)[: settings.max_length] for answer in given[1:]
    ]
