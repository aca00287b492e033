"""SD2's own command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.evaluation import inference_sd2
from tests.evaluation.programs import two_questions
from tests.tiny import make_chat_pair, make_sorted_draft


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    base, _ = make_chat_pair(tmp_path)
    draft = make_sorted_draft(base, tmp_path / "sorted")
    model = ["--model-path", str(base), "--draft-model-path", str(draft), "--model-id", "tiny", "--device", "cpu"]
    return [*model, "--question-file", str(two_questions(tmp_path)), "--max-new-tokens", "20"]


@pytest.mark.parametrize(
    ("more", "exits"),
    [
        (["--submodels", "1,2,3", "--thresholds", "0.5,0.5,0"], {"exits": [1, 2, 3], "thresholds": [0.5, 0.5]}),
        (["--submodels", "2", "--thresholds", "0.5", "--chain", "--do_sample"], {"exits": [2]}),
        ([], {"exits": [3]}),
    ],
)
def test_its_arguments_answer_its_questions(asked: list[str], more: list[str], exits: dict[str, object]) -> None:
    assert inference_sd2.main([*asked, *more, "--total-token", "12", "--depth", "2", "--top-k", "3"]) == 0
    settings = json.loads(Path("data/mt_bench/model_answer/tiny_run.json").read_text())["settings"]
    assert settings["sorted"] == exits
    assert settings["drafting"]["tree"] == ("chain" if "--chain" in more else "deterministic")
    assert settings["temperature"] == (0.7 if "--do_sample" in more else 0.0)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--submodels", "6,9,12"], "has exits after 1, 2, 3 layers: give all of them or one"),
        (["--submodels", "a"], "--submodels are numbers with commas between them"),
        (["--thresholds", "0.5;0.5"], "--thresholds are numbers with commas between them"),
        (["--thresholds", "0.5"], "there are 3 exits: give 2 thresholds"),
    ],
)
def test_bad_input_is_one_line(
    asked: list[str], capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert inference_sd2.main([*asked, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert complaint in error
