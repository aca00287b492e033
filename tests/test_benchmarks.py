"""Benchmarks on tiny pairs: that they measure what they say, not how fast it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import acceptance, edits, forms, forward, gpu, heads, launches, oracle, peers
from eagle.data.questions import load_questions
from eagle.decoding.method import Method
from eagle.evaluation import equal, speed
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, load
from eagle.target.int8 import ENGINE
from eagle.tree.shape import HYBRID, Sampling, TreeShape
from eagle.tree.warping import Warper
from tests.tiny import compiles, load_pair, make_chat_pair

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def has_int8() -> bool:
    return ENGINE in torch.backends.quantized.supported_engines


def test_launches_are_counted_by_stage_and_views_are_not() -> None:
    with launches.Launches(torch.device("cpu")) as counted:
        made = torch.ones(4, 4)
        made.view(16)[3:].unsqueeze(0).expand(5, -1)
        torch.empty_like(made)
        made.add_(1).sum()
        # Of the same dtype and order nothing is copied.
        made.to(torch.float32).contiguous()
        made.to(torch.float64).t().contiguous()
    assert counted.count == 5


@pytest.mark.skipif(not compiles(), reason="no C++ compiler, or no headers of Python")
def test_a_compiled_region_counts_as_one_launch(llama_pair: tuple[Path, Path]) -> None:
    model = load(
        ModelChoice(base_model_path=str(llama_pair[0]), ea_model_path=str(llama_pair[1]), dtype="float32", device="cpu")
    )
    shape, counts = TreeShape(8, 2, 3), []
    for _ in range(2):
        found = launches.of_rounds(model, PROMPT, Method.named(hsd=False), shape, Warper(1.0), rounds=3)
        counts.append(found["drafting"])
        model.drafter.compile()
    # Three regions, and between them what chooses the tree.
    assert 3 < counts[1] < counts[0] / 2


def test_what_is_recorded_is_one_launch(llama_pair: tuple[Path, Path]) -> None:
    model = load_pair(*llama_pair)
    shape, found = TreeShape(12, 2, 3), []
    for _ in range(2):
        found.append(launches.of_rounds(model, PROMPT, Method.named(hsd=False), shape, Warper(1.0), rounds=3))
        launches.record(model)
    eager, recorded = found
    # What is left are copies to and from the recordings, and putting a tree together.
    assert recorded["target"] < 30 < eager["target"] / 3
    assert recorded["drafting"] < 20 < eager["drafting"] / 3
    assert recorded["verification"] == eager["verification"]


def test_hsd_launches_more_than_eagle3_beside_the_same_target(llama: EaModel) -> None:
    sampling = Sampling(0.1, 0.5, 2)
    found = {}
    for hsd in (False, True):
        method = Method.named(hsd=hsd)
        shape = method.shape(TreeShape(12, 2, 3, sampling))
        found[hsd] = launches.of_rounds(llama, PROMPT, method, shape, Warper(1.0), rounds=5)
    for stage in ("drafting", "verification"):
        assert 0 < found[False][stage] < found[True][stage]
    assert found[True]["target"] == pytest.approx(found[False]["target"], abs=4)


def test_early_decisions_are_measured_beside_the_order_of_keys(llama: EaModel) -> None:
    plain = TreeShape(9, 2, 3, Sampling(0.2, 0.7, 1))
    early = TreeShape(9, 2, 3, Sampling(0.2, 0.7, 1, early=0.1))
    columns = acceptance.measure(
        llama, [PROMPT, PROMPT + 1], {HYBRID: plain, acceptance.EARLY: early}, (5, 9), 2, Warper(1.0), 3, 4
    )
    rules = {(column.tree, column.rule) for column in columns}
    assert rules == {
        (HYBRID, "tokenwise"),
        (HYBRID, "hsd"),
        (HYBRID, acceptance.BY_KEY),
        (acceptance.EARLY, "tokenwise"),
        (acceptance.EARLY, "hsd"),
    }
    assert all(0 < column.mean <= 3 for column in columns)


def test_the_gpu_table_can_be_tried_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.md"
    few = ["--device", "cpu", "--nodes", "8", "--repeats", "1", "--depth", "2", "--out", str(file)]
    assert gpu.main([*few, "--small"]) == 0
    assert file.read_text() == capsys.readouterr().out
    rows = [line.split(" | ") for line in file.read_text().splitlines() if line.startswith("| a small pair")]
    ways = ["| a small pair, eager", "| a small pair, compiled"][: 1 + compiles()]
    methods = [["EAGLE-3", "0", "8"], ["EAGLE-3", "1", "8"], ["HSD", "1", "8"]]
    assert [row[:4] for row in rows] == [[way, *method] for way in ways for method in methods]
    for row in rows:
        whole, reading, over = float(row[9]), float(row[10]), float(row[11].split("x")[0])
        assert min(map(float, row[4:10])) > 0
        assert over == pytest.approx(whole / reading, rel=0.2)
    assert gpu.main(few) == 2
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.skipif(not compiles(), reason="no C++ compiler, or no headers of Python")
def test_a_forward_is_measured_in_every_form(llama_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--base-model-path", str(llama_pair[0]), "--nodes", "1", "5", "--context", "20", "--repeats", "2"]
    assert forward.main(few) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    forms = [form for form, (quantize, _) in forward.FORMS.items() if quantize is None or has_int8()]
    for kind in (forward.LOADED, *forms):
        assert all(f"{kind} " in line for line in lines[1:])


@pytest.mark.skipif(not compiles(), reason="no C++ compiler, or no headers of Python")
def test_methods_are_compared_within_their_form_and_forms_with_the_eager_one(llama_pair: tuple[Path, Path]) -> None:
    choice = ModelChoice(
        base_model_path=str(llama_pair[0]), ea_model_path=str(llama_pair[1]), dtype="float32", device="cpu"
    )
    models = forms.loaded(choice, ["eager", "compiled"])
    found = forms.rows(models, [PROMPT, PROMPT[:, :3]], 1.0, 8)
    shown = {row[1:3]: [bool(cell) for cell in row[5:]] for row in found}
    assert shown == {
        ("eager", "autoregressive"): [False, False, False],
        ("eager", "EAGLE-3"): [True, False, False],
        ("eager", "HSD"): [True, True, False],
        ("compiled", "autoregressive"): [False, False, True],
        ("compiled", "EAGLE-3"): [True, False, True],
        ("compiled", "HSD"): [True, True, True],
    }
    # At 0 HSD is EAGLE-3.
    assert [row[2] for row in forms.rows(models, [PROMPT], 0.0, 4)] == 2 * ["autoregressive", "EAGLE-3"]


def test_heads_are_compared_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, head = make_chat_pair(tmp_path)
    monkeypatch.setattr(heads, "QUESTIONS", 3)
    few = ["--contexts", "1", "--draws", "1", "--nodes", "4", "--levels", "2", "--new-tokens", "8", "--steps", "2"]
    few += ["--temperature", "1.0", "--prompts", "1", "--base-model-path", str(base), "--dtype", "float32"]
    assert heads.main([str(head), str(head), *few, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    # The same head accepts as much.
    assert "step 2" in shown
    assert shown.count("+0.0 % (+0.0 to +0.0)") >= 3
    assert f"HSD, {head}" in shown


def test_edits_ask_for_names_that_are_not_there_yet(tmp_path: Path) -> None:
    edits.edits([str(tmp_path / "question.jsonl")])
    questions = load_questions(tmp_path / "question.jsonl")
    assert len(questions) == 50
    assert all(edits.CODE in question.turns[0] for question in questions)
    for old, names in edits.NEW_NAMES.items():
        assert old in edits.CODE
        assert not any(f" {name}(" in edits.CODE or f"class {name}" in edits.CODE for name in names)


def test_peers_write_what_speed_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, _ = make_chat_pair(tmp_path)
    (tmp_path / "question.jsonl").write_text('{"question_id": 1, "category": "rag", "turns": ["A B A", "A B"]}\n')
    asked = ["--base-model-path", str(base), "--question-file", str(tmp_path / "question.jsonl"), "--device", "cpu"]
    peers.peers(
        [
            str(tmp_path / "peers"),
            *asked,
            "--max-new-token",
            "20",
            "--dtype",
            "float64",
            "--draft-model-path",
            str(base),
        ]
    )
    files = [str(tmp_path / "peers" / f"{name}.jsonl") for name in ("prompt_lookup", "assisted", "plain")]
    assert speed.main(files) == 0
    assert "overall" in capsys.readouterr().out
    assert all(equal.main([file, files[-1]]) == 0 for file in files[:-1])


def test_an_oracle_is_never_worse_than_what_it_chooses_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = make_chat_pair(tmp_path)
    (tmp_path / "question.jsonl").write_text(
        "".join(
            f'{{"question_id": {n}, "category": "{c}", "turns": ["A B A B {n}"]}}\n'
            for n, c in enumerate(("rag", "qa"))
        )
    )
    few = ["--base-model-path", str(base), "--ea-model-path", str(head), "--device", "cpu", "--contexts", "3"]
    asked = [*few, "--question-file", str(tmp_path / "question.jsonl"), "--nodes", "6", "--dtype", "float64"]
    assert oracle.main([*asked, "--temperature", "1.0", "--draws", "2"]) == 0
    rows = [
        line.split(" | ")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("| all", "| rag", "| qa"))
    ]
    assert [row[0] for row in rows] == ["| all", "| qa", "| rag"] * 2
    for _, head_alone, looked_up, better, both, ratio in rows:
        assert float(better) >= max(float(head_alone), float(looked_up))
        assert float(ratio.split()[0]) == pytest.approx(float(both) / float(better), rel=0.1, abs=0.02)
