"""The embedded default, end to end: the real model, the shipped head, the real questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle import assets
from eagle.chat_template import chat_ids
from eagle.data.questions import load_questions
from eagle.decoding.stored_trees import StoredTrees
from eagle.devices import bfloat16_is_fast
from eagle.evaluation import gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat
from eagle.model.ea_model import EaModel
from eagle.tree.shape import TreeShape

pytestmark = [pytest.mark.slow, pytest.mark.network]
PROMPTS = 6
PARTS = 2
"""Parts of the prompts, which processes of tests may share."""


@pytest.fixture(scope="module")
def model() -> EaModel:
    """In float32, with a tree of several levels, so that paths of several nodes commit."""
    return EaModel.from_pretrained(dtype=torch.float32, device_map="cpu", total_token=12, depth=3, top_k=8)


def first_turns(model: EaModel) -> list[torch.Tensor]:
    """Prompts of the first turns of evenly spread MT-Bench questions."""
    questions = load_questions(assets.mt_bench_questions())
    return [
        chat_ids(model.get_tokenizer(), [{"role": "user", "content": question.turns[0]}])
        for question in questions[:: len(questions) // PROMPTS][:PROMPTS]
    ]


@pytest.mark.parametrize("part", range(PARTS))
def test_greedy_text_is_autoregressive_text_on_mt_bench(model: EaModel, part: int) -> None:
    """To the stock model, which reads each text at once, no token is likelier than the one that is there, but for
    rounding; one text is also decoded token by token."""
    accepted, longest = 0, 0
    prompts = first_turns(model)[part::PARTS]
    for prompt in prompts:
        ids, _, _, info = model.eagenerate(prompt, max_new_tokens=32, log=True)
        with torch.inference_mode():
            logits = model.base_model(ids[:, :-1]).logits[0, prompt.shape[1] - 1 :]
        chosen = logits.gather(1, ids[0, prompt.shape[1] :, None])
        torch.testing.assert_close(chosen, logits.amax(1, keepdim=True), rtol=0, atol=1e-3)
        accepted += sum(info["accept_length"])
        longest = max(longest, *info["accept_length"])
    if part == 0:
        assert ids.tolist() == model.naivegenerate(prompt, max_new_tokens=32).tolist()
    assert len(prompts) == PROMPTS // PARTS
    assert accepted > 20
    assert longest >= 3


def test_the_program_needs_no_arguments_but_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--question-end", "1", "--max-new-token", "5", "--device", "cpu"]
    assert gen_ea_answer_llama3chat.main(few) == 0
    assert gen_ea_answer_llama3chat.main([*few, "--use_eagle3", "--hsd", "--temperature", "1.0"]) == 0
    assert gen_baseline_answer_llama3chat.main(few) == 0
    for suffix in ("ea", "ea_hsd", "baseline"):
        answer = json.loads(Path(f"mt_bench/default/smollm2-135m-temperature-1.0_{suffix}.jsonl").read_text())
        assert answer["question_id"] == 81
        assert all(turn.strip() for turn in answer["choices"][0]["turns"])
    for suffix, kind in (("ea", "deterministic"), ("ea_hsd", "hybrid")):
        run = json.loads(Path(f"mt_bench/default/smollm2-135m-temperature-1.0_{suffix}_run.json").read_text())
        assert run["settings"]["dtype"] == "bfloat16"
        stored = StoredTrees.read(assets.head(), "cpu bfloat16" if bfloat16_is_fast() else "cpu")
        assert TreeShape(**{**run["settings"]["tree"], "sampling": None}) == replace(
            stored.at(1.0, kind), sampling=None
        )
        assert (run["settings"]["tree"]["sampling"] is not None) == (kind == "hybrid")


def test_the_generation_config_ends_texts(model: EaModel) -> None:
    assert model.stop_ids() == {2}
    prompt = chat_ids(model.get_tokenizer(), [{"role": "user", "content": "Say only: yes"}])
    ids = model.eagenerate(prompt, max_new_tokens=300)
    assert ids[0, -1] == 2
    assert 2 not in ids[0, prompt.shape[1] : -1]
