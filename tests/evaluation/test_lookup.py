"""The programs with look-up, from answers to statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.evaluation import gen_ea_answer_llama3chat, stats, sweep
from tests.evaluation.programs import arguments, lines, two_questions
from tests.tiny import make_chat_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_chat_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return two_questions(tmp_path)


def test_a_sweep_with_look_up(
    pair: tuple[Path, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["--method", "baseline", "lookup/deterministic:tokenwise", "eagle3+suffix/hybrid:hsd"]
    more = ["--temperature", "0", "1.0", "--longest", "5", "--max-new-token", "30"]
    assert sweep.main(arguments(pair, questions, *methods, *more)) == 0
    shown = capsys.readouterr().out
    assert "look-up, deterministic tree, tokenwise" in shown
    assert "EAGLE-3 with suffixes, hybrid tree, hsd" in shown
    folder, name = tmp_path / "mt_bench" / "f", "ea_lookup_deterministic_tokenwise"
    texts = [
        [line["choices"][0]["turns"] for line in lines(folder / f"tiny-temperature-0.0_{which}.jsonl")]
        for which in (name, "baseline")
    ]
    assert texts[0] == texts[1]
    run = json.loads((folder / f"tiny-temperature-1.0_{name}_run.json").read_text())["settings"]
    assert run["drafting"] == {"tree": "deterministic", "verifier": "tokenwise", "drafter": "lookup"}
    assert run["lookup"] == {"shortest": 1, "longest": 5, "order": "W"}
    assert run["tree"] == {"total_token": 16, "depth": 11, "top_k": 4, "sampling": None, "least": 0.1}
    assert "ea_model_sha256" not in run
    infos = lines(folder / f"tiny-temperature-0.0_{name}_info.jsonl")
    assert sum(sum(turn) for info in infos for turn in info["accept_length"]) > 0
    assert stats.main([str(folder)]) == 0


def test_answers_of_other_look_up_settings_are_not_mixed(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(pair, questions, "--drafter", "lookup", "--total-token", "8")
    assert gen_ea_answer_llama3chat.main([*asked, "--question-end", "1"]) == 0
    assert gen_ea_answer_llama3chat.main([*asked, "--shortest", "2"]) == 2
    assert "lookup" in capsys.readouterr().err
    assert gen_ea_answer_llama3chat.main(asked) == 0


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--method", "lookup/hybrid:hsd"], "draws no tokens"),
        (["--method", "lookup/deterministic:tokenwise", "--total-token", "-1"], "cannot be measured for lookup"),
        (["--method", "lookup/deterministic:tokenwise", "--least-expanded", "0.2"], "for what a model drafts; lookup"),
        (["--method", "lookup/deterministic:tokenwise", "--longest", "0"], "a match has at least 1 token"),
        (["--method", "lookup/deterministic:tokenwise", "--depth", "0"], "1 or more, not 0"),
    ],
)
def test_bad_input_is_one_line(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert sweep.main(arguments(pair, questions, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert complaint in error
