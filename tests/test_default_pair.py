"""The embedded default, end to end: the real model, the shipped head, the real questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle import assets
from eagle.data.questions import load_questions
from eagle.evaluation import gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat
from eagle.model.ea_model import EaModel
from eagle.model.stored_trees import StoredTrees
from eagle.model.tree import TreeShape

pytestmark = [pytest.mark.slow, pytest.mark.network]


def first_turns(model: EaModel, count: int) -> list[torch.Tensor]:
    """Prompts of the first turns of evenly spread MT-Bench questions."""
    tokenizer = model.get_tokenizer()
    questions = load_questions(assets.mt_bench_questions())
    prompts = []
    for question in questions[:: len(questions) // count][:count]:
        messages = [{"role": "user", "content": question.turns[0]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids)
    return prompts


@pytest.mark.timeout(1200)
def test_greedy_text_is_autoregressive_text_on_mt_bench() -> None:
    """32 prompts, 128 tokens, float32; every round of a tree of several levels, so paths of several nodes commit."""
    model = EaModel.from_pretrained(dtype=torch.float32, device_map="cpu", total_token=12, depth=3, top_k=8)
    accepted, longest = 0, 0
    prompts = first_turns(model, 32)
    assert len(prompts) == 32
    for prompt in prompts:
        drafted, _, _, info = model.eagenerate(prompt, max_new_tokens=128, log=True)
        assert drafted.tolist() == model.naivegenerate(prompt, max_new_tokens=128).tolist()
        accepted += sum(info["accept_length"])
        longest = max(longest, *info["accept_length"])
    assert accepted > 500
    assert longest >= 3


def test_the_program_needs_no_arguments_but_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--question-end", "1", "--max-new-token", "16", "--device", "cpu"]
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
        assert TreeShape(**{**run["settings"]["tree"], "sampling": None}) == replace(
            StoredTrees.read(assets.head(), "cpu").at(1.0, kind), sampling=None
        )
        assert (run["settings"]["tree"]["sampling"] is not None) == (kind == "hybrid")


def test_the_generation_config_ends_texts() -> None:
    model = EaModel.from_pretrained(device_map="cpu", total_token=6, depth=1, top_k=4)
    assert model.stop_ids() == {2}
    prompt = model.get_tokenizer()(
        "<|im_start|>user\nSay only: yes<|im_end|>\n<|im_start|>assistant\n",
        return_tensors="pt",
        add_special_tokens=False,
    ).input_ids
    ids = model.eagenerate(prompt, max_new_tokens=300)
    assert ids[0, -1] == 2
    assert 2 not in ids[0, prompt.shape[1] : -1]
