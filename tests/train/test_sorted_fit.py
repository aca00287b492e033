"""Training sorted drafts: every exit learns, a killed run goes on, and what is written drafts."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eagle.drafters.sorted.checkpoint import load_sorted
from eagle.drafters.sorted.exits import SortedDraft
from eagle.errors import InputError
from eagle.evaluation import gen_ea_answer_llama3chat
from eagle.model.ea_model import EaModel
from eagle.target.target import Target
from eagle.train.__main__ import main
from eagle.train.answers import ANSWERS
from eagle.train.progress import RunFolder, read_metrics
from eagle.train.sorted_export import DRAFT, SortedExportSettings, export_sorted
from eagle.train.sorted_fit import SORTED, fit_sorted
from eagle.train.sorted_settings import HARD, SortedSettings
from eagle.train.vocab import VOCABULARY
from tests.evaluation.programs import two_questions
from tests.processes import run_until_killed
from tests.tiny import make_chat_pair, make_pair, make_sorted_draft, stock_model
from tests.train.fitting import ready, some_answers, write_answers

SHARED = (
    "base_model_path",
    "out",
    "dtype",
    "device",
    "max_length",
    "batch_tokens",
    "epochs",
    "mixed_precision",
    "every",
)


def settings_in(folder: Path, answers: int = 40, **others: Any) -> SortedSettings:
    """Of a training with answers and vocabulary in place."""
    of_a_head = ready(folder, answers=answers)
    shared = {name: getattr(of_a_head, name) for name in SHARED}
    return SortedSettings(**shared | {"layers": 3, "learning_rate": 1e-2} | others)


def held_out(settings: SortedSettings) -> list[dict[str, Any]]:
    return [line for line in read_metrics(settings.folder / SORTED) if line["kind"] == "held_out"]


@pytest.mark.parametrize("loss", ["soft", "log"])
def test_every_exit_learns_what_the_target_says(tmp_path: Path, loss: str) -> None:
    settings = settings_in(tmp_path, answers=200, epochs=8, every=1000, loss=loss)
    fit_sorted(settings)
    first, *_, last = held_out(settings)
    assert len(last["overlap"]) == 3
    assert all(after > before for before, after in zip(first["overlap"], last["overlap"], strict=True))
    assert last["accepted"] > 1.05 * first["accepted"]
    assert last["accepted"] == pytest.approx(sum(last["overlap"]) / 3)


def test_with_hard_labels_every_exit_learns_the_answers(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, epochs=20, every=1000, loss=HARD)
    fit_sorted(settings)
    losses = [line["loss"] for line in read_metrics(settings.folder / SORTED) if line["kind"] == "train"]
    for first, last in zip(*(torch.tensor(part).mean(0).tolist() for part in (losses[:8], losses[-8:])), strict=True):
        assert last < first


def test_trained_for_the_last_exit_alone_the_others_say_less(tmp_path: Path) -> None:
    both = settings_in(tmp_path, answers=200, epochs=8, every=1000)
    fit_sorted(both)
    alone = replace(both, only_last=True, out=tmp_path / "alone")
    write_answers(alone.folder / ANSWERS, some_answers(200))
    (alone.folder / VOCABULARY).write_bytes((both.folder / VOCABULARY).read_bytes())
    fit_sorted(alone)
    sorted_, last_only = held_out(both)[-1]["overlap"], held_out(alone)[-1]["overlap"]
    assert sorted_[0] > last_only[0]


@pytest.mark.parametrize("others", [{}, {"keep_readings": True}, {"freeze_ends": False}], ids=str)
def test_a_killed_run_goes_on_to_the_same_weights(others: dict[str, Any], tmp_path: Path) -> None:
    whole = settings_in(tmp_path, **{"every": 3} | others)
    fit_sorted(whole)
    killed = replace(whole, out=tmp_path / "killed")
    write_answers(killed.folder / ANSWERS, some_answers(40))
    (killed.folder / VOCABULARY).write_bytes((whole.folder / VOCABULARY).read_bytes())
    run_until_killed(RunFolder(killed.folder / SORTED).metrics, 6, fit_sorted, killed)
    fit_sorted(killed)
    mine, expected = (
        load_file(RunFolder(each.folder / SORTED).checkpoints()[-1] / "model.safetensors") for each in (killed, whole)
    )
    assert mine.keys() == expected.keys()
    assert ("lm_head.weight" in mine) == (not whole.freeze_ends)
    for name, tensor in mine.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_draft_with_ends_of_its_own_is_a_model_at_every_exit(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, answers=200, epochs=8, every=1000, freeze_ends=False)
    for file in make_chat_pair(tmp_path / "with a tokenizer")[0].glob("tokenizer*"):
        shutil.copy(file, str(settings.base_model_path))
    fit_sorted(settings)
    exporting = SortedExportSettings(base_model_path=settings.base_model_path, out=settings.out, weights="float32")
    export_sorted(exporting)
    draft, base = settings.folder / DRAFT, str(settings.base_model_path)
    target = Target(stock_model(Path(base)))
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    for number in (1, 2, 3):
        exit_ = load_sorted(str(draft), target, (number,))
        alone = AutoModelForCausalLM.from_pretrained(draft / f"exit-{number}", dtype=torch.float32)
        assert alone.config.num_hidden_layers == number
        with torch.inference_mode():
            torch.testing.assert_close(
                alone(input_ids=prompt).logits[..., exit_.draft_ids],
                exit_.scorer.model(input_ids=prompt).logits.float()[..., exit_.draft_ids],
            )
    model = EaModel.from_pretrained(base_model_path=base, draft_model_path=str(draft / "exit-2"), device_map="cpu")
    assert model.eagenerate(prompt, max_new_tokens=8).shape == (1, 13)
    # Trees that were searched for it stay when it is exported anew, and nothing is exported that did not improve.
    (draft / "tree.json").write_text("{}")
    export_sorted(replace(exporting, weights="bfloat16"))
    assert (draft / "tree.json").is_file()
    with pytest.raises(InputError, match="export it all the same with --unimproved"):
        export_sorted(replace(exporting, step=0))


@pytest.mark.network
@pytest.mark.slow
def test_a_smoke_run_says_whether_training_was_worth_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, _ = make_chat_pair(tmp_path)
    out = tmp_path / "training"
    arguments = ["sorted", "--smoke", "--base-model-path", str(base), "--out", str(out), "--device", "cpu"]
    with contextlib.suppress(SystemExit):
        main([*arguments, "--dtype", "float32", "--max-length", "96"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("trained", "untrained"))]
    assert [row[0] for row in rows] == ["untrained", "trained"]
    assert all(0.0 <= float(overlap) <= 1.0 for row in rows for overlap in row[1:])
    assert (out / DRAFT / "model.safetensors").is_file()


@pytest.mark.parametrize("freeze_ends", [True, False])
def test_what_was_trained_drafts(tmp_path: Path, freeze_ends: bool) -> None:
    settings = settings_in(tmp_path, answers=200, epochs=8, every=1000, freeze_ends=freeze_ends)
    fit_sorted(settings)
    folder = str(RunFolder(settings.folder / SORTED).best())
    target = Target(stock_model(Path(str(settings.base_model_path))))
    assert load_sorted(folder, target).exits == (1, 2, 3)
    assert load_sorted(folder, target, numbers=(2,)).exits == (2,)
    with pytest.raises(InputError, match="--exit must be 1 to 3"):
        load_sorted(folder, target, numbers=(4,))
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    for draft in (SortedDraft(folder), SortedDraft(folder, exit=1), SortedDraft(folder, thresholds=(0.4, 0.4))):
        model = EaModel.from_pretrained(
            base_model_path=settings.base_model_path, sorted_draft=draft, dtype=torch.float64, device_map="cpu"
        )
        expected = model.naivegenerate(prompt, max_new_tokens=50)
        ids, _, _, info = model.eagenerate(prompt, max_new_tokens=50, log=True)
        assert torch.equal(ids, expected)
        assert sum(info["accept_length"]) > 5
        for tree in ("chain", "hybrid"):
            generator = torch.Generator().manual_seed(0)
            _, _, _, info = model.eagenerate(
                prompt, 1.0, max_new_tokens=100, log=True, hsd=True, tree=tree, generator=generator
            )
            assert sum(info["accept_length"]) > 5


def test_the_answering_program_takes_it_as_a_drafter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, _ = make_chat_pair(tmp_path)
    folder = make_sorted_draft(base, tmp_path / "sorted", exits=(1, 2))
    asked = ["--base-model-path", str(base), "--question-file", str(two_questions(tmp_path)), "--device", "cpu"]
    how = ["--drafter", "sorted", "--max-new-token", "20", "--answer-file", str(tmp_path / "a.jsonl"), "--hsd"]
    with_it = ["--sorted-model-path", str(folder), "--exit-thresholds", "0.3"]
    assert gen_ea_answer_llama3chat.main([*asked, *how, *with_it]) == 0
    settings = json.loads((tmp_path / "a_run.json").read_text())["settings"]
    assert settings["drafting"] == {"tree": "hybrid", "verifier": "hsd", "drafter": "sorted"}
    assert settings["sorted"] == {"exits": [1, 2], "thresholds": [0.3]}
    assert set(settings["sorted_model_sha256"]) == {"config.json", "model.safetensors"}
    for wrong, complaint in (
        ([], "needs a sorted draft; give --sorted-model-path"),
        (["--sorted-model-path", str(folder), "--exit", "3"], "--exit must be 1 to 2"),
        (["--sorted-model-path", str(folder), "--exit", "0"], "--exit counts from 1"),
        (
            ["--sorted-model-path", str(folder), "--exit", "1", "--exit-thresholds", "1"],
            "there are no --exit-threshold",
        ),
        (["--sorted-model-path", str(base)], "holds no sorted draft"),
    ):
        assert gen_ea_answer_llama3chat.main([*asked, *how, *wrong]) == 2
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--exits", "1", "2"], "--exits must be ascending numbers of layers, the last one all 3"),
        (["--exit-weights", "1", "2"], "--exit-weights must be 3 numbers"),
        (["--only-last", "--exit-weights", "1", "1", "1"], "there are no --exit-weights"),
        (["--loss", "mix"], "--loss must be one of soft, adaptive, log, hard"),
        (["--layers", "99", "--exits", "99"], "--layers must be 1 to"),
    ],
)
def test_bad_settings_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], complaint: str
) -> None:
    settings = settings_in(tmp_path)
    where = ["--base-model-path", str(settings.base_model_path), "--out", str(settings.folder), "--device", "cpu"]
    assert main(["sorted", *where, "--max-length", str(settings.max_length), *wrong]) == 2
    assert complaint in capsys.readouterr().err


def test_files_that_are_no_sorted_draft_of_this_target_are_refused(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    target = Target(stock_model(base))
    with pytest.raises(InputError, match="holds no sorted draft"):
        load_sorted(str(head), target)
