"""The programs with a draft model, from answers to statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.evaluation import gen_ea_answer_llama3chat, stats, sweep
from eagle.evaluation.audit import __main__ as audit
from tests.evaluation.programs import arguments, lines, two_questions, without_times
from tests.tiny import make_chat_draft, make_chat_pair

METHODS = ["draft/chain:tokenwise", "draft/chain:naive_hsd", "draft/paths:hsd", "draft/hybrid:hsd"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Path], Path]:
    folder = tmp_path_factory.mktemp("models")
    pair = make_chat_pair(folder)
    return pair, make_chat_draft(pair[0], folder / "draft")


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return two_questions(tmp_path)


def test_a_sweep_with_a_draft_model_and_no_head(
    models: tuple[tuple[Path, Path], Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base, _), draft = models
    common = ["--base-model-path", str(base), "--draft-model-path", str(draft), "--device", "cpu", "--model-id", "tiny"]
    common += ["--question-file", str(questions), "--folder_id", "f", "--max-new-token", "12", "--depth", "3"]
    grid = [*common, "--paths", "2", "--method", "baseline", *METHODS, "--temperature", "0", "1.0"]
    assert sweep.main(grid) == 0
    folder = tmp_path / "mt_bench" / "f"
    shown = capsys.readouterr().out
    for method in METHODS:
        tree, rule = method.removeprefix("draft/").split(":")
        name, label = f"ea_draft_{tree}_{rule}", f"{tree} tree, {rule}"
        greedy, plain = (folder / f"tiny-temperature-0.0_{which}.jsonl" for which in (name, "baseline"))
        assert [line["choices"][0]["turns"] for line in lines(greedy)] == [
            line["choices"][0]["turns"] for line in lines(plain)
        ]
        assert f"draft model, {label}" in shown
        run = json.loads((folder / f"tiny-temperature-1.0_{name}_run.json").read_text())["settings"]
        assert run["drafting"]["drafter"] == "draft"
        assert run["draft_model_sha256"]
        assert "ea_model_sha256" not in run
    assert stats.main([str(folder)]) == 0


def test_the_single_program_writes_what_the_sweep_writes_and_resumes(
    models: tuple[tuple[Path, Path], Path], questions: Path, tmp_path: Path
) -> None:
    pair, draft = models
    more = ["--draft-model-path", str(draft), "--paths", "2", "--depth", "3"]
    assert sweep.main(arguments(pair, questions, *more, "--method", "draft/paths:tokenwise")) == 0
    single = ["--drafter", "draft", "--tree", "paths", "--verifier", "tokenwise", "--folder_id", "g"]
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, *more, *single, "--question-end", "1")) == 0
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, *more, *single)) == 0
    for ending in (".jsonl", "_info.jsonl", "_run.json"):
        files = [
            tmp_path / "mt_bench" / folder / f"tiny-temperature-1.0_ea_draft_paths_tokenwise{ending}" for folder in "fg"
        ]
        assert without_times(files[0]) == without_times(files[1])


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--method", "draft/chain:hsd"], "needs a draft model; give --draft-model-path"),
        (["--method", "graft/chain:hsd"], "drafter must be one of"),
        (["--method", "chain:naive_hsd"], "which only a separate draft model has"),
        (["--method", "draft/paths:blockwise"], "single chain"),
        (["--method", "hsd", "--draft-model-path", "nowhere/at-all-of-this"], "the draft model"),
        (["--method", "paths:hsd", "--paths", "0"], "paths must be 1 or more"),
    ],
)
def test_bad_input_is_explained(
    models: tuple[tuple[Path, Path], Path],
    questions: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    complaint: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert sweep.main(arguments(models[0], questions, *more)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert complaint in errors[0]


def test_an_audit_of_the_draft_models_methods(
    models: tuple[tuple[Path, Path], Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base, _), draft = models
    paths = ["--base-model-path", str(base), "--draft-model-path", str(draft), "--dtype", "float64", "--device", "cpu"]
    few = ["--question-file", str(questions), "--draws", "40", "--prompts", "1", "--depth", "2", "--format", "json"]
    assert audit.main([*paths, *few, "--method", "draft/chain:naive_hsd"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"].startswith("no difference found between draft/chain:naive_hsd")
