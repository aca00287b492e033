import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eagle.drafters.eagle3.checkpoint import load_head
from eagle.errors import InputError
from eagle.identity import base_identity
from eagle.target.target import Target
from eagle.train.__main__ import main
from eagle.train.answers import ANSWERS, read_answers
from eagle.train.batches import plan, split
from eagle.train.fit import FIT, fit
from eagle.train.fit_settings import FitSettings
from eagle.train.options import command
from eagle.train.progress import RunFolder, read_metrics
from eagle.train.vocab import VOCABULARY, DraftVocabulary
from tests.processes import run_on_a_full_disk, run_until_killed
from tests.tiny import VOCAB, head_files, stock_model, write_head
from tests.train.fitting import ready, some_answers, write_answers


def weights(settings: FitSettings) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(settings.out / FIT).checkpoints()[-1] / "model.safetensors")


def comparable(settings: FitSettings) -> list[dict]:
    """The metrics without what a clock decides."""
    lines = read_metrics(settings.out / FIT)
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def test_training_raises_the_overlap_with_a_target_worth_predicting(tmp_path: Path) -> None:
    settings = replace(ready(tmp_path, answers=200), epochs=12, every=1000, learning_rate=1e-2)
    fit(settings)
    first, *_, last = [line for line in read_metrics(settings.out / FIT) if line["kind"] == "held_out"]
    assert last["loss"][0] < first["loss"][0]
    assert last["accepted"] > 1.1 * first["accepted"]
    assert len(last["overlap"]) == len(last["top1"]) == settings.drafting_steps
    assert (settings.out / FIT / "curves.png").stat().st_size > 1000
    # Any program here can load a checkpoint.
    target = Target(stock_model(Path(str(settings.base_model_path))))
    load_head(str(RunFolder(settings.out / FIT).best()), target)


@pytest.mark.parametrize(
    "others",
    [{}, {"accumulation": 2}, {"keep_readings": True}, {"mixed_precision": "bf16"}, {"optimizer": "adamw"}],
    ids=str,
)
def test_a_killed_run_goes_on_to_the_same_weights_and_metrics(others: dict[str, Any], tmp_path: Path) -> None:
    whole = replace(ready(tmp_path), **{"every": 3} | others)
    fit(whole)
    killed = replace(whole, out=tmp_path / "killed")
    write_answers(killed.out / ANSWERS, some_answers(40))
    (killed.out / VOCABULARY).write_bytes((whole.out / VOCABULARY).read_bytes())
    folder = RunFolder(killed.out / FIT)
    # Lines before training, of three steps, of an evaluation, and of one step behind the checkpoint, which is lost.
    run_until_killed(folder.metrics, 6, fit, killed)
    assert [line["step"] for line in read_metrics(folder.path)] == [0, 1, 2, 3, 3, 4]
    assert [path.name for path in folder.checkpoints()][-1] == "step-00000003"
    fit(killed)
    assert comparable(killed) == comparable(whole)
    expected = weights(whole)
    for name, tensor in weights(killed).items():
        assert torch.equal(tensor, expected[name]), name


def test_accumulated_batches_and_one_large_one_make_the_same_step(tmp_path: Path) -> None:
    one = replace(ready(tmp_path), batch_tokens=10_000, epochs=1, every=1000)
    fit(one)
    training, _ = split(read_answers(one.out / ANSWERS), one.max_length, one.held_out)
    batches = len(plan(training, 64, group=1, epochs=1, seed=one.seed))
    many = replace(one, batch_tokens=64, accumulation=batches, out=tmp_path / "many")
    write_answers(many.out / ANSWERS, some_answers(40))
    (many.out / VOCABULARY).write_bytes((one.out / VOCABULARY).read_bytes())
    fit(many)
    first, second = (
        next(line for line in read_metrics(settings.out / FIT) if line["kind"] == "train") for settings in (one, many)
    )
    assert batches > 2
    assert first["tokens"] == second["tokens"]
    for name in ("loss", "overlap", "gradient_norm", "accepted"):
        assert first[name] == pytest.approx(second[name], rel=1e-4)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_that_accumulates_twice_as_much(tmp_path: Path) -> None:
    one = replace(ready(tmp_path), accumulation=2)
    fit(one)
    two = replace(one, accumulation=1, out=tmp_path / "two")
    write_answers(two.out / ANSWERS, some_answers(40))
    (two.out / VOCABULARY).write_bytes((one.out / VOCABULARY).read_bytes())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher += ["-m", "eagle.train"]
    arguments = command("fit", FitSettings, asdict(two)).split()[3:]
    # What Accelerate's own launcher would have it do is the settings' business.
    launched = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3"}
    # A name that a machine gives itself does not always lead back to it.
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = os.environ | launched | loopback | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *arguments], env=environment, check=True)
    expected = comparable(one)
    for ours, theirs in zip(comparable(two), expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("loss", "overlap", "accepted", "gradient_norm"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3), (theirs["step"], name)


def test_a_full_disk_is_explained_and_leaves_no_broken_checkpoint(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    arguments = command("fit", FitSettings, asdict(settings)).split()[3:]
    status, errors = run_on_a_full_disk(3000, main, arguments)
    assert status == 2, errors
    assert "cannot write the checkpoint" in errors
    assert "Traceback" not in errors
    assert not list((settings.out / FIT / "checkpoints").iterdir())
    fit(settings)


def test_a_run_with_other_settings_or_answers_is_refused(tmp_path: Path) -> None:
    settings = replace(ready(tmp_path), steps=2)
    fit(settings)
    with pytest.raises(InputError, match=r"was begun with learning_rate=0.0025, this run has 0.01"):
        fit(replace(settings, learning_rate=0.01))
    write_answers(settings.out / ANSWERS, some_answers(41))
    with pytest.raises(InputError, match=r"was begun with answers_sha256=.* choose another --out"):
        fit(settings)


def test_training_goes_on_with_the_same_models_wherever_they_are(tmp_path: Path) -> None:
    settings = replace(ready(tmp_path), steps=2)
    head = write_head(tmp_path / "head", *head_files(Path(str(settings.base_model_path))))
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "base", moved)
    fit(settings)
    fit(replace(settings, base_model_path=str(moved)))
    (moved / "generation_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"another base model: generation_config.json differs; choose another --out"):
        fit(replace(settings, base_model_path=str(moved)))
    with pytest.raises(InputError, match="was begun with initial='target'"):
        fit(replace(settings, initial=str(head)))
    begun = yaml.safe_load((settings.out / FIT / "config.yaml").read_text())
    assert begun["base_model_sha256"] == base_identity(str(settings.base_model_path))
    assert str(tmp_path) not in str(begun)


def test_two_trainings_do_not_write_one_folder(tmp_path: Path) -> None:
    settings = replace(ready(tmp_path), steps=2)
    with RunFolder(settings.out / FIT).locked(), pytest.raises(InputError, match="another training is writing to"):
        fit(settings)
    fit(settings)
    assert not list((settings.out / FIT).glob(".*"))


def test_what_cannot_be_trained_on_is_an_error(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    with pytest.raises(InputError, match="--max-length 100 does not fit into --batch-tokens 64"):
        replace(settings, max_length=100)
    DraftVocabulary.of(torch.arange(VOCAB + 1), VOCAB + 1).save(settings.out / VOCABULARY)
    with pytest.raises(InputError, match=f"the draft vocabulary has {VOCAB + 1} tokens, more than the target's"):
        fit(settings)
    (settings.out / VOCABULARY).unlink()
    with pytest.raises(InputError, match=r"make it with: python -m eagle\.train vocab"):
        fit(settings)
    for answers in (settings.out / ANSWERS).iterdir():
        answers.unlink()
    with pytest.raises(InputError, match="holds no answers; make some with"):
        fit(replace(settings))
