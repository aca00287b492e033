"""Reading prompts, and keeping benchmark questions out of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eagle import assets
from eagle.errors import InputError
from eagle.evaluation.questions import load_questions
from eagle.train.prompts import Excluded, benchmark_texts, read_conversations, select_prompts

SHAREGPT_RECORD = {
    "conversations": [
        {"from": "human", "value": " Hello "},
        {"from": "gpt", "value": "Hi"},
        {"from": "human", "value": "Bye"},
    ]
}


def written(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_every_kind_of_line_is_read(tmp_path: Path) -> None:
    lines = [
        {"prompt": "Hello\u2028there"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
        {"turns": ["Hello", "Bye"], "question_id": 1},
        SHAREGPT_RECORD,
        {"conversations": [{"from": "gpt", "value": "I go on"}, {"from": "human", "value": "Do"}]},
    ]
    # A line separator inside a text is no end of line.
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    read = read_conversations(written(tmp_path / "prompts.jsonl", text))
    assert [conversation.turns for conversation in read] == [
        ("Hello\u2028there",),
        ("Hello",),
        ("Hello", "Bye"),
        ("Hello", "Bye"),
    ]
    assert read[1].prompt() == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert read[3].prompt() == [{"role": "user", "content": "Hello"}]


def test_a_json_array_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps([SHAREGPT_RECORD, {"conversations": []}, SHAREGPT_RECORD], indent=1)
    assert len(read_conversations(written(tmp_path / "prompts.json", text))) == 2
    assert "3 complete records, 2 of them begun by a human" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "holds no prompts"),
        ("[]", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt"', "line 2: not valid JSON"),
        ('{"prompt": "a"}\n{"question": "b"}', "line 2: must be a JSON object with one of prompt"),
        ('{"prompt": 7}', "line 1: 'prompt' must hold texts"),
        ('{"turns": "a"}', "line 1: 'turns' must be a list"),
        ('{"messages": ["a"]}', "line 1: a message must be a JSON object"),
        ("[1]", "record 1: must be a JSON object"),
        ('[{"prompt": "a"}, {"prompt"', "record 2: not valid JSON"),
    ],
)
def test_malformed_files_are_explained(text: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=where) as caught:
        read_conversations(written(tmp_path / "prompts.jsonl", text))
    assert "prompts.jsonl" in str(caught.value)


def test_a_file_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the prompts"):
        read_conversations(str(tmp_path / "none.jsonl"))


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        read_conversations("hf:owner/name")


def test_a_data_set_is_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    written(tmp_path / "test.jsonl", "".join(json.dumps({"question": f"Q {i}", "turns": ["T"]}) + "\n" for i in "ab"))
    source = f"hf:{tmp_path}:test"
    assert [conversation.turns for conversation in read_conversations(source)] == [("T",), ("T",)]
    assert [conversation.turns for conversation in read_conversations(f"{source}:question")] == [("Q a",), ("Q b",)]
    for wrong, reason in ((f"{source}:none", "no column 'none'"), (f"hf:{tmp_path}:none", "could not be read")):
        with pytest.raises(InputError, match=reason):
            read_conversations(wrong)


NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS += ["thirteen", "fourteen"]


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
    read = read_conversations(written(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines))))
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
    own = written(tmp_path / "own.jsonl", json.dumps({"turns": ["What is it?", " ".join(NUMBERS)]}))
    excluded = Excluded(benchmark_texts([own]))
    turns = [turn for question in questions for turn in question.turns]
    assert len(turns) == 160
    long = [turn for turn in turns if len(turn.split()) > 20]
    assert all(f"Please help me!! {turn.upper()} Thanks a lot." in excluded for turn in long)
    assert all(turn.swapcase() in excluded for turn in turns)
    assert " ".join(NUMBERS) in excluded
    assert "Write a short poem about the sea, the wind and the sand, and make it rhyme if you can." not in excluded


@pytest.mark.slow
@pytest.mark.network
def test_sharegpt_has_so_many_complete_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read_conversations(None)) > 10_000
    assert "ShareGPT: 17,671 complete records" in capsys.readouterr().err


def test_an_array_that_is_no_utf8_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_bytes(b"[" + b" " * 5000 + b'{"prompt": "caf\xe9"}]')
    with pytest.raises(InputError, match=r"cannot read the prompts .*prompts\.json"):
        read_conversations(str(file))
