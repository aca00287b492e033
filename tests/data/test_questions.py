"""Question files: the formats that are read, and where those of a benchmark are found."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import orjson
import pytest

from eagle.data.questions import Question, load_questions
from eagle.errors import InputError
from eagle.evaluation.answering.bench import add_bench_arguments, question_file

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))


def named(*argv: str) -> Path:
    """The question file that a program with these arguments reads."""
    parse = argparse.ArgumentParser()
    add_bench_arguments(parse)
    return question_file(parse.parse_args(argv))


def written(*lines: object) -> Path:
    file = Path("q.jsonl")
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def test_eagles_lines_and_gsm8ks_own_are_read() -> None:
    eagle = {"question_id": 0, "category": "math", "turns": ["How many?"], "reference": ["2+2 = 4\n#### 4"]}
    expected = [Question(0, ("How many?",), "math", ("2+2 = 4\n#### 4",))]
    assert load_questions(written(eagle)) == expected
    assert load_questions(written({"question": "How many?", "answer": "2+2 = 4\n#### 4"})) == expected


def test_gsm8ks_own_lines_are_numbered_by_their_place_in_the_file() -> None:
    file = written(*({"question": f"How many of {number}?", "answer": f"#### {number}"} for number in range(5)))
    chosen = load_questions(file, 2, 4)
    assert [question.question_id for question in chosen] == [2, 3]
    assert [question.reference for question in chosen] == [("#### 2",), ("#### 3",)]


def test_a_text_may_hold_any_character_that_json_allows() -> None:
    file = written({"question_id": 1, "turns": ["one\u2028two\x85three"]}, {"question_id": 2, "turns": ["four"]})
    assert [question.turns for question in load_questions(file)] == [("one\u2028two\x85three",), ("four",)]


def test_references_are_optional_and_checked() -> None:
    assert load_questions(written({"question_id": 1, "turns": ["x"]}))[0].reference is None
    for wrong in ("4", [4], {"a": "b"}):
        with pytest.raises(InputError, match=r"q\.jsonl, line 1: 'reference'"):
            load_questions(written({"question_id": 1, "turns": ["x"], "reference": wrong}))


@pytest.mark.parametrize("line", [{"question": "x"}, {"answer": "x"}, {"question": 1, "answer": "#### 1"}])
def test_half_a_gsm8k_line_is_refused(line: object) -> None:
    with pytest.raises(InputError, match=r"q\.jsonl, line 1: "):
        load_questions(written(line))


@pytest.mark.parametrize("bench", ["gsm8k", "humaneval", "alpaca", "qa", "sum", "mine"])
def test_a_benchmarks_folder_may_hold_its_questions(bench: str) -> None:
    file = Path(bench, "question.jsonl")
    file.parent.mkdir()
    file.write_text('{"question_id": 1, "turns": ["x"]}\n')
    assert named("--bench-name", bench) == file
    assert named("--bench-name", bench, "--question-file", "other.jsonl") == Path("other.jsonl")


@pytest.mark.parametrize("bench", ["humaneval", "alpaca", "qa", "sum"])
def test_where_eagles_questions_are_is_said(bench: str) -> None:
    with pytest.raises(InputError) as raised:
        named("--bench-name", bench)
    for part in (f"eagle/data/{bench}/question.jsonl", "SafeAILab/EAGLE", f"{bench}/question.jsonl, or name"):
        assert part in str(raised.value)


def test_an_unknown_benchmark_needs_a_file() -> None:
    with pytest.raises(InputError, match=r"mine/question\.jsonl, or name a --question-file") as raised:
        named("--bench-name", "mine")
    assert "SafeAILab" not in str(raised.value)


@needs_datasets
def test_gsm8k_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # datasets takes a folder of the data set's name for the data set, so this one is laid out as the hub's.
    monkeypatch.setenv("HF_HOME", "hf")
    rows = [{"question": f"How many\u2028of {number}?", "answer": f"#### {number}"} for number in range(3)]
    hub = Path("openai/gsm8k")
    (hub / "main").mkdir(parents=True)
    (hub / "main/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (hub / "main/train.jsonl").write_text(json.dumps({"question": "not this", "answer": "#### 0"}) + "\n")
    configuration = "configs:\n- config_name: main\n  data_files:\n"
    files = "  - split: train\n    path: main/train.jsonl\n  - split: test\n    path: main/test.jsonl\n"
    (hub / "README.md").write_text(f"---\n{configuration}{files}---\n")
    converted = named("--bench-name", "gsm8k")
    expected = [Question(number, (f"How many\u2028of {number}?",), "math", (f"#### {number}",)) for number in range(3)]
    assert load_questions(converted) == expected
    assert converted.is_relative_to(Path("cache").resolve())
    (hub / "main/test.jsonl").unlink()
    assert named("--bench-name", "gsm8k") == converted
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]


@needs_datasets
def test_gsm8k_out_of_reach_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("openai/gsm8k").mkdir(parents=True)
    with pytest.raises(InputError, match="--question-file") as raised:
        named("--bench-name", "gsm8k")
    assert "eagle/data/gsm8k/question.jsonl" in str(raised.value)
    assert not Path("cache/data").exists()


HALF = "\\ud83d"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (f'{{"question_id": 1, "turns": ["Hello.", "So {HALF}!"]}}', "turns"),
        (f'{{"question_id": 1, "turns": ["x"], "category": "{HALF}"}}', "category"),
        (f'{{"question_id": 1, "turns": ["x"], "reference": ["{HALF}"]}}', "reference"),
        (f'{{"question_id": "{HALF}", "turns": ["x"]}}', "question_id"),
        (f'{{"question": "{HALF}", "answer": "#### 1"}}', "turns"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_line(line: str, key: str) -> None:
    Path("q.jsonl").write_text('{"question_id": 0, "turns": ["\\ud83d\\ude00"]}\n' + line)
    with pytest.raises(InputError, match=rf"q\.jsonl, line 2: '{key}' holds half of a surrogate pair"):
        load_questions(Path("q.jsonl"))
    Path("q.jsonl").write_text(line.replace(HALF, "\\ud83d\\ude00"))
    assert load_questions(Path("q.jsonl"))


def test_ids_that_not_every_reader_takes_are_refused() -> None:
    for number in (-(2**63), 2**64 - 1, str(2**64)):
        assert load_questions(written({"question_id": number, "turns": ["x"]}))[0].question_id == number
        # As the answers are read back.
        assert orjson.loads(json.dumps({"question_id": number}))["question_id"] == number
    for number in (-(2**63) - 1, 2**64, 10**30):
        with pytest.raises(InputError, match=r"q\.jsonl, line 1: 'question_id' has more than 64 bits; write it as"):
            load_questions(written({"question_id": number, "turns": ["x"]}))
    Path("q.jsonl").write_text('{"question_id": 1' + "0" * 5000 + ', "turns": ["x"]}')
    with pytest.raises(InputError, match=r"q\.jsonl, line 1: not valid JSON"):
        load_questions(Path("q.jsonl"))


def test_a_mark_before_the_first_line_is_no_part_of_it() -> None:
    Path("q.jsonl").write_text('{"question_id": 1, "turns": ["x"]}\n', encoding="utf-8-sig")
    assert load_questions(Path("q.jsonl")) == [Question(1, ("x",))]
