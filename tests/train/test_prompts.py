"""Keeping benchmark questions out of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle import assets
from eagle.data.conversations import read_conversations
from eagle.data.questions import load_questions
from eagle.errors import InputError
from eagle.train.prompts import Excluded, benchmark_texts, select_prompts

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS += ["thirteen", "fourteen"]


def written(file: Path, records: list[dict[str, object]]) -> str:
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return str(file)


def test_thirteen_common_words_are_an_overlap_and_twelve_are_not() -> None:
    excluded = Excluded([" ".join(NUMBERS), "Say hello!"])
    assert "So: " + ", ".join(NUMBERS[1:]).upper() + "; and so on?" in excluded
    assert "So: " + " ".join(NUMBERS[2:]) + " and so on, and on, and on" not in excluded
    assert "say, HELLO" in excluded
    assert "say hello to her" not in excluded
    # Below 13 words only the whole text counts.
    assert " ".join(NUMBERS[:12]) not in excluded


def test_prompts_come_once_in_an_order_of_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": f"Count to {number}"} for number in range(50)]
    lines += [lines[3], {"prompt": "count to THREE"}, {"prompt": " ".join(NUMBERS)}]
    read = read_conversations(written(tmp_path / "p.jsonl", lines))
    excluded = Excluded([" ".join(NUMBERS), "Count to three."])
    first, again, other = (select_prompts(read, excluded, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 50
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, other))
    assert "50 left of 53; 1 occurred before, 2 overlap" in capsys.readouterr().err
    with pytest.raises(InputError, match="no prompts are left"):
        select_prompts(read[-1:], excluded, 0)


@pytest.mark.network
def test_a_planted_benchmark_question_is_found(tmp_path: Path) -> None:
    questions = load_questions(assets.mt_bench_questions())
    own = written(tmp_path / "own.jsonl", [{"turns": ["What is it?", " ".join(NUMBERS)]}])
    excluded = Excluded(benchmark_texts([own]))
    turns = [turn for question in questions for turn in question.turns]
    assert len(turns) == 160
    long = [turn for turn in turns if len(turn.split()) > 20]
    assert all(f"Please help me!! {turn.upper()} Thanks a lot." in excluded for turn in long)
    assert all(turn.swapcase() in excluded for turn in turns)
    assert " ".join(NUMBERS) in excluded
    assert "Write a short poem about the sea, the wind and the sand, and make it rhyme if you can." not in excluded
