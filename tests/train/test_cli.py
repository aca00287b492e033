import contextlib
from pathlib import Path

import pytest
import yaml

from eagle.train.__main__ import main
from eagle.train.answers import ANSWERS
from eagle.train.fit import FIT
from eagle.train.progress import RunFolder
from tests.tiny import make_chat_pair
from tests.train.fitting import ready


def test_the_command_line_comes_before_yaml_and_yaml_before_the_defaults(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    file = tmp_path / "given.yaml"
    file.write_text(
        "fit: {steps: 1, drafting_steps: 2, learning_rate: 1e-2, max_length: 16, batch_tokens: 64, decay: 0.5}\n"
    )
    arguments = ["--config", str(file), "--out", str(settings.out), "--base-model-path", str(settings.base_model_path)]
    assert main(["fit", *arguments, "--device", "cpu", "--decay", "0.7", "--fc-norm"]) == 0
    merged = yaml.safe_load((settings.out / "config.yaml").read_text())["fit"]
    assert (merged["steps"], merged["learning_rate"], merged["decay"]) == (1, 0.01, 0.7)
    assert merged["fc_norm"] is True
    assert merged["clipping"] == 0.5
    progress = RunFolder(settings.out / FIT).progress()
    assert progress is not None
    assert progress.step == 1


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("fit: {stepz: 1}", "fit has no setting 'stepz'"),
        ("fit: {steps: many}", "fit.steps must be of type int, not 'many'"),
        ("fitting: {}", "has 'fitting'; the stages are generate, given, vocab, fit, export"),
        ("fit: [1]", "must hold a mapping for each stage"),
        ("fit: {decay: 2.0}", "--decay must lie in [0, 1], not 2.0"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    contents: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(contents)
    assert main(["fit", "--config", str(file), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.network
def test_all_stages_run_in_one_folder_and_again_without_doing_anything_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = make_chat_pair(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Count to {number}, please."}}\n' for number in range(12)))
    out = tmp_path / "training"
    arguments = ["run", "--base-model-path", str(base), "--out", str(out), "--device", "cpu", "--dtype", "float32"]
    arguments += ["--generate.prompts", str(prompts), "--generate.max-new-tokens", "8", "--fit.drafting-steps", "2"]
    arguments += ["--fit.batch-tokens", "128", "--fit.max-length", "128", "--fit.mixed-precision", "no"]
    assert main(arguments) == 0
    assert {path.name for path in out.iterdir()} >= {ANSWERS, FIT, "head", "head-speculators", "vocab.safetensors"}
    card = (out / "head" / "README.md").read_text()
    assert "python -m eagle.train generate" in card
    assert "--max-new-tokens 8" in card
    metrics, config = (out / FIT / "metrics.jsonl").read_bytes(), (out / "config.yaml").read_bytes()
    (out / "head" / "tree.json").write_text("{}")
    capsys.readouterr()
    assert main(arguments) == 0
    assert (out / FIT / "metrics.jsonl").read_bytes() == metrics
    assert "going on after step" in capsys.readouterr().err
    # Trees searched for a head outlive its being exported again.
    assert (out / "head" / "tree.json").read_text() == "{}"
    # A command that is refused is not what the head was trained with.
    assert main(["fit", "--base-model-path", str(base), "--out", str(out), "--learning-rate", "9"]) == 2
    assert "was begun with" in capsys.readouterr().err
    assert (out / "config.yaml").read_bytes() == config


@pytest.mark.network
@pytest.mark.slow
def test_a_smoke_run_says_whether_training_was_worth_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, _ = make_chat_pair(tmp_path)
    arguments = ["run", "--smoke", "--base-model-path", str(base), "--out", str(tmp_path / "training")]
    arguments += ["--device", "cpu", "--dtype", "float32", "--generate.limit", "24", "--generate.max-new-tokens", "12"]
    with contextlib.suppress(SystemExit):
        main(arguments)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("trained", "untrained"))]
    assert [row[0] for row in rows] == ["trained", "untrained,", "untrained,"]
    assert all(0.0 <= float(length) <= 16.0 for row in rows for length in row[-2:])


@pytest.mark.parametrize("stage", ["generate", "fit"])
def test_an_unknown_dtype_is_one_line(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage, "--out", str(tmp_path), "--dtype", "float12"]) == 2
    assert "--dtype must be one of auto, float32" in capsys.readouterr().err
