"""Hierarchy Drafting's own command, and its file of n-grams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.drafters.lookup.history import History, read_history
from eagle.errors import InputError
from eagle.evaluation import gen_baseline_answer_llama3chat, inference_hierarchy
from tests.evaluation.programs import lines, two_questions
from tests.tiny import make_chat_pair


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_pair(tmp_path_factory.mktemp("pair"))[0]


@pytest.fixture
def asked(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    questions = two_questions(tmp_path)
    model = ["--model-path", str(base), "--model-id", "tiny", "--device", "cpu", "--max-new-tokens", "30"]
    return [*model, "--question-file", str(questions), "--level", "5", "--guess", "7", "--previous_tokens", "2"]


def test_counts_are_of_every_context_in_an_n_gram() -> None:
    history = History({(1, 2, 3): 2, (5, 2, 4): 1}, (2.0, 1.0), 8)
    assert [(match.length, match.counts) for match in history.matches([1, 2])] == [(2, {3: 2}), (1, {3: 2, 4: 1})]
    assert [match.escape for match in history.matches([1, 2])] == [1.0, 2.0]
    assert list(history.matches([3])) == []
    assert [match.length for match in History({(1, 2, 3): 2}, (1.0,), 1).matches([1, 2])] == [1]


def test_its_arguments_answer_its_questions(
    asked: list[str], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = tmp_path / "history.json"
    history.write_text(json.dumps({"77/78/79/80/81": 3, "10/11/12/13/14": 1}))
    assert inference_hierarchy.main([*asked, "--do_WM", "--do_SM", "--history_file", str(history)]) == 0
    answers = Path("data/mt_bench/model_answer/tiny.jsonl")
    run = json.loads(answers.with_name("tiny_run.json").read_text())["settings"]
    assert run["temperature"] == 0.0
    assert run["drafting"]["drafter"] == "lookup"
    assert {name: run["lookup"][name] for name in ("shortest", "longest", "order")} == {
        "shortest": 1,
        "longest": 2,
        "order": "WS",
    }
    assert run["tree"] == {"total_token": 29, "depth": 3, "top_k": 7, "sampling": None, "least": 0.1}
    found = [line["choices"][0] for line in lines(answers)]
    assert all(len(choice["accept_lengths"]) == sum(choice["decoding_steps"]) for choice in found)
    plain = ["--base-model-path", str(base), "--model-id", "tiny", "--device", "cpu", "--max-new-token", "30"]
    how = ["--question-file", str(tmp_path / "question.jsonl"), "--temperature", "0", "--answer-file", "plain.jsonl"]
    assert gen_baseline_answer_llama3chat.main([*plain, *how]) == 0
    assert [choice["turns"] for choice in found] == [line["choices"][0]["turns"] for line in lines(Path("plain.jsonl"))]


def test_lookahead_rows_are_nodes_beside_the_guesses(asked: list[str], base: Path, tmp_path: Path) -> None:
    assert inference_hierarchy.main([*asked, "--do_WM", "--window", "3"]) == 0
    run = json.loads(Path("data/mt_bench/model_answer/tiny_run.json").read_text())["settings"]
    assert {name: run["lookup"][name] for name in ("window", "lookahead_level")} == {"window": 3, "lookahead_level": 5}
    assert run["tree"]["total_token"] == 29 + 3 * 4
    plain = ["--base-model-path", str(base), "--model-id", "tiny", "--device", "cpu", "--max-new-token", "30"]
    how = ["--question-file", str(tmp_path / "question.jsonl"), "--temperature", "0", "--answer-file", "plain.jsonl"]
    assert gen_baseline_answer_llama3chat.main([*plain, *how]) == 0
    texts = [
        [line["choices"][0]["turns"] for line in lines(file)]
        for file in (Path("data/mt_bench/model_answer/tiny.jsonl"), Path("plain.jsonl"))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--window", "-1"], "window must be 0 or more"),
        (["--window", "7", "--do_LM", "--db_file", "any.safetensors"], "lookahead rows (window 7) fill W"),
        (["--level", "1"], "--level must be 2 or more"),
        (["--do_SM"], "the database S is the file model_db"),
        (["--order", "Q", "--do_WM"], "order is made of the letters W, S, L"),
        (["--db_file", "datastore_chat_large.idx"], "an index of REST's own format, which is not read"),
        (["--history_file", "absent.json"], "cannot read the history file"),
    ],
)
def test_bad_input_is_one_line(
    asked: list[str], capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert inference_hierarchy.main([*asked, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert complaint in error


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[1]", "is no history file"),
        ("{}", "is no history file"),
        ('{"1/x": 2}', "'1/x': 2 is not"),
        ('{"1": 2}', "'1': 2 is not"),
        ('{"1/2": 0}', "'1/2': 0 is not"),
        ('{"1/999": 1}', "token 999, where this model has 258"),
        ("{", "cannot read the history file"),
    ],
)
def test_files_that_are_no_history_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "history.json"
    file.write_text(content)
    with pytest.raises(InputError, match=complaint):
        read_history(file, 258, (1.0,), 8)
