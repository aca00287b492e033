"""A training that meets what is no number stops at once, and what it learned before stays."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.writing import OFFICIAL
from eagle.errors import InputError
from eagle.target.target import Target
from eagle.train.__main__ import main
from eagle.train.answers import ANSWERS, Answer, read_answers
from eagle.train.batches import plan, split
from eagle.train.export import ExportSettings, export, folder_of
from eagle.train.fit import FIT, fit
from eagle.train.fit_settings import FitSettings
from eagle.train.options import command
from eagle.train.progress import RunFolder, read_metrics
from eagle.train.vocab import VOCABULARY, DraftVocabulary
from tests.processes import run_together
from tests.tiny import HIDDEN, VOCAB, head_files, stock_model, write_head
from tests.train.fitting import DRAFTED, ready, write_answers

# A token of the target that the tests spoil: whoever reads it says that nothing is a number.
SPOILED = 5


def spoil(base: Path, value: float) -> None:
    """Give the embedding of one token a value that is no number, or no finite one."""
    state = load_file(base / "model.safetensors")
    state["model.embed_tokens.weight"][SPOILED] = value
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})


def answers_where(spoiled: set[int], count: int = 40) -> list[Answer]:
    """Answers of which some have the token."""
    return [
        Answer(
            key=f"{number}@1",
            prompt=[number % SPOILED, number // SPOILED % SPOILED, number // SPOILED**2 % SPOILED],
            answer=[SPOILED if number in spoiled else 1, 2, 3, 4, 1, 2],
            temperature=1.0,
            finished=True,
        )
        for number in range(count)
    ]


def prepared(folder: Path, spoiled: set[int], **others: Any) -> FitSettings:
    settings = replace(ready(folder), **{"epochs": 1, "every": 1, "batch_tokens": 18} | others)
    assert settings.out is not None
    write_answers(settings.out / ANSWERS, answers_where(spoiled))
    return settings


def spoiled_at(settings: FitSettings, step: int, batch: int) -> int:
    """The number of the first answer in a batch of a step, as a training of 2 batches a step plans them."""
    assert settings.out is not None
    answers = read_answers(settings.out / ANSWERS)
    training, _ = split(answers, settings.max_length, settings.held_out)
    index = plan(training, settings.batch_tokens, 2, 1, settings.seed)[step][batch][0]
    return next(n for n, answer in enumerate(answers) if answer.prompt + answer.answer == training[index].tokens)


def checkpoints_are_sound(settings: FitSettings) -> list[int]:
    """The steps of all checkpoints, whose weights are numbers."""
    assert settings.out is not None
    folders = RunFolder(settings.out / FIT).checkpoints()
    for folder in folders:
        for name, tensor in load_file(folder / "model.safetensors").items():
            assert tensor.float().isfinite().all(), name
    return [int(folder.name.removeprefix("step-")) for folder in folders]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_step_without_a_loss_ends_the_training_with_the_checkpoint_before_it(
    value: float, batch: int, tmp_path: Path
) -> None:
    settings = prepared(tmp_path, set(), accumulation=2)
    write_answers(Path(str(settings.out)) / ANSWERS, answers_where({spoiled_at(settings, 3, batch)}))
    spoil(Path(str(settings.base_model_path)), value)
    with pytest.raises(InputError, match=r"step 4 of \d+ has a loss of nan.*step-00000003 is the last good") as caught:
        fit(settings)
    assert "\n" not in str(caught.value)
    assert checkpoints_are_sound(settings)[-1] == 3
    assert max(line["step"] for line in read_metrics(Path(str(settings.out)) / FIT)) == 3
    # The same command meets the same batch; what was good is still there.
    with pytest.raises(InputError, match="step 4 of"):
        fit(settings)
    assert checkpoints_are_sound(settings)[-1] == 3


def test_steps_that_lead_out_of_the_numbers_leave_no_checkpoint(tmp_path: Path) -> None:
    settings = replace(ready(tmp_path), every=1, warmup=0.0, learning_rate=1e38, matrix_learning_rate=1e38)
    with pytest.raises(InputError, match=r"step-00000000 is the last good checkpoint.*lower learning rates"):
        fit(settings)
    assert checkpoints_are_sound(settings) == [0]


def test_held_out_answers_without_a_loss_end_the_training_before_it_begins(tmp_path: Path) -> None:
    settings = prepared(tmp_path, set())
    answers = read_answers(Path(str(settings.out)) / ANSWERS)
    _, held_out = split(answers, settings.max_length, settings.held_out)
    tokens = [document.tokens for document in held_out]
    spoiled = {n for n, answer in enumerate(answers) if answer.prompt + answer.answer in tokens}
    write_answers(Path(str(settings.out)) / ANSWERS, answers_where(spoiled))
    spoil(Path(str(settings.base_model_path)), float("nan"))
    with pytest.raises(InputError, match="after step 0 the loss on held-out answers is nan already"):
        fit(settings)
    assert checkpoints_are_sound(settings) == []


def test_a_target_that_overflows_everywhere_is_what_is_named(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    base = Path(str(settings.base_model_path))
    state = load_file(base / "model.safetensors")
    state["model.layers.0.mlp.down_proj.weight"] *= 1e300
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"hidden states are not numbers already.*--dtype bfloat16"):
        fit(replace(settings, dtype="bfloat16", feature_layers=(1, 2, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_stop_where_one_of_them_meets_what_is_no_number(rank: int, tmp_path: Path) -> None:
    settings = prepared(tmp_path, set())
    write_answers(Path(str(settings.out)) / ANSWERS, answers_where({spoiled_at(settings, 3, rank)}))
    spoil(Path(str(settings.base_model_path)), float("nan"))
    for status, errors in run_together(2, main, command("fit", FitSettings, asdict(settings)).split()[3:]):
        assert status == 2
        assert "step 4 of" in errors
    assert checkpoints_are_sound(settings)[-1] == 3


def test_a_head_that_did_not_improve_is_exported_only_when_told(tmp_path: Path) -> None:
    settings = replace(ready(tmp_path), every=9, steps=2, learning_rate=1e-9, matrix_learning_rate=1e-9)
    fit(settings)
    # As a training that made nothing better leaves it.
    metrics = RunFolder(Path(str(settings.out)) / FIT).metrics
    lines = read_metrics(metrics.parent)
    start = next(line["accepted"] for line in lines if line["kind"] == "held_out")
    lines = [line | {"accepted": start} if line["kind"] == "held_out" else line for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = ExportSettings(base_model_path=settings.base_model_path, out=settings.out, step=2)
    for exporting in (told, replace(told, step=0)):
        with pytest.raises(InputError, match=r"step-0000000\d has .* export it all the same with --unimproved"):
            export(exporting)
        assert not folder_of(Path(str(settings.out)), OFFICIAL).exists()
    export(replace(told, unimproved=True))
    target = Target(stock_model(Path(str(settings.base_model_path))))
    load_head(str(folder_of(Path(str(settings.out)), OFFICIAL)), target)
    metrics.unlink()
    with pytest.raises(InputError, match="lacks the evaluations from step 0 to step 2"):
        export(told)
    metrics.write_text("{\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1: not valid JSON"):
        export(told)


def test_training_goes_on_from_a_head_with_biases_of_its_own(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    base = Path(str(settings.base_model_path))
    config, state = head_files(base)
    state["midlayer.self_attn.q_proj.bias"] = torch.randn(HIDDEN, dtype=torch.float64)
    first = write_head(tmp_path / "head", config, state)
    DraftVocabulary.of(torch.tensor(DRAFTED), VOCAB).save(Path(str(settings.out)) / VOCABULARY)
    fit(replace(settings, initial=str(first), steps=4, every=2))
    fit(replace(settings, initial=str(first), steps=4, every=2))
    export(ExportSettings(base_model_path=str(base), out=settings.out, unimproved=True, weights="float32", step=4))
    head = load_head(str(folder_of(Path(str(settings.out)), OFFICIAL)), Target(stock_model(base)))
    assert {"q_proj", "o_proj"} < head.config.biases
    assert not torch.equal(head.midlayer.self_attn.q_proj.bias.float(), state["midlayer.self_attn.q_proj.bias"].float())
