"""Prompts and numbers as people give them: masks, lists, None, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.tree.shape import Sampling, TreeShape
from tests.decoding.rounds import PROMPT
from tests.tiny import load_pair, make_base, make_pair

IDS = PROMPT[0].tolist()
PADDED = torch.tensor([[0, 0, 0, *IDS]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])


def test_what_a_mask_hides_is_not_read_and_stays_in_front(llama: EaModel) -> None:
    """As the stock model does; also in law, since the seed decides the text."""
    stock = llama.base_model.generate(PADDED, attention_mask=MASK, do_sample=False, max_new_tokens=20)
    for generate in (llama.eagenerate, llama.naivegenerate):
        for mask in (MASK, MASK.bool(), MASK.tolist(), MASK[0]):
            assert generate(PADDED, max_new_tokens=20, attention_mask=mask).tolist() == stock.tolist()
    streamed = list(llama.ea_generate(PADDED, max_new_tokens=20, attention_mask=MASK))
    assert streamed[-1].tolist() == stock.tolist()
    drawn = [
        llama.eagenerate(ids, temperature=1.0, hsd=True, generator=torch.Generator().manual_seed(3), **more)
        for ids, more in ((PADDED, {"attention_mask": MASK, "max_length": 48}), (PROMPT, {"max_length": 45}))
    ]
    assert drawn[0][0, 3:].tolist() == drawn[1][0].tolist()


def test_without_a_mask_leading_padding_is_what_the_stock_model_takes_for_it(
    llama: EaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.base_model.generation_config, "pad_token_id", 0)
    stock = llama.base_model.generate(PADDED, do_sample=False, max_new_tokens=20)
    assert llama.eagenerate(PADDED, max_new_tokens=20).tolist() == stock.tolist()
    as_text = torch.ones_like(PADDED)
    assert llama.eagenerate(PADDED, max_new_tokens=20, attention_mask=as_text).tolist() != stock.tolist()
    with pytest.raises(InputError, match=r"padding token 0 at position 2, .*attention_mask=torch.ones_like"):
        llama.eagenerate([3, 1, 0, 4])
    # A token that also ends texts is no padding.
    monkeypatch.setattr(llama.base_model.generation_config, "eos_token_id", 0)
    both = [llama.eagenerate(PADDED, max_new_tokens=20, **more) for more in ({}, {"attention_mask": as_text})]
    assert both[0].tolist() == both[1].tolist()


@pytest.mark.parametrize(
    ("ids", "mask", "complaint"),
    [
        (IDS, [1, 0, 1, 1, 1], "attention_mask hides position 1, behind the first token of the prompt; only padding"),
        (IDS, [1, 1, 1, 1, 0], "attention_mask hides position 4"),
        (IDS, [0, 0, 0, 0, 0], "the prompt is empty: attention_mask hides all of it"),
        (IDS, [1, 1], r"attention_mask has shape \(1, 2\), but input_ids have \(1, 5\)"),
        (IDS, "text", "attention_mask must be a tensor or a list"),
        ([[1, 2], [3]], None, "input_ids must be a tensor or a list of token ids: "),
        ([[1, 2], [3, 4]], None, r"input_ids must have shape \(1, n\), one prompt at a time, not \(2, 2\)"),
        ([], None, "the prompt is empty; give at least one token"),
        ([1.0, 2.0], None, "input_ids must be integers, not torch.float32"),
        (["a"], None, "input_ids must be a tensor or a list of token ids: "),
        ("Why?", None, "input_ids must be a tensor or a list of token ids, not str"),
        ({"input_ids": PROMPT}, None, r"not dict; of what a tokenizer returns take .input_ids"),
        (None, None, "input_ids must be a tensor or a list of token ids, not NoneType"),
        ([1, 99], None, "outside the model's vocabulary of 8"),
        ([1, 2**70], None, "input_ids must be a tensor or a list of token ids: "),
    ],
)
def test_prompts_that_are_none_are_refused_in_one_line(llama: EaModel, ids: Any, mask: Any, complaint: str) -> None:
    for generate in (llama.eagenerate, llama.naivegenerate):
        with pytest.raises(InputError, match=complaint) as caught:
            generate(ids, attention_mask=mask)
        assert "\n" not in str(caught.value)


def test_lists_and_arrays_are_prompts(llama: EaModel) -> None:
    expected = llama.eagenerate(PROMPT, max_new_tokens=10).tolist()
    for ids in (IDS, [IDS], tuple(IDS), np.array(IDS), PROMPT[0], PROMPT.int()):
        assert llama.eagenerate(ids, max_new_tokens=10).tolist() == expected


def test_none_is_the_default(llama: EaModel) -> None:
    nothing = dict.fromkeys(
        ("temperature", "top_p", "top_k", "max_length", "generator", "verifier", "tree", "attention_mask")
    )
    usual = llama.eagenerate(PROMPT, max_new_tokens=10)
    assert llama.eagenerate(PROMPT, **nothing, max_new_tokens=10).tolist() == usual.tolist()
    assert llama.eagenerate(PROMPT, max_new_tokens=None).shape[1] == 256


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": True}, "temperature must be a number, not True"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"top_p": [0.9]}, r"top_p must be a number, not \[0.9\]"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"max_new_tokens": 10.0}, "max_new_tokens must be a whole number, not 10.0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"max_length": "long"}, "max_length must be a whole number, not 'long'"),
        ({"generator": 7}, "generator must be a torch.Generator, not int"),
    ],
)
def test_arguments_of_another_kind_are_one_line(llama: EaModel, argument: dict[str, Any], complaint: str) -> None:
    for generate in (llama.eagenerate, llama.naivegenerate, llama.ea_generate):
        with pytest.raises(InputError, match=complaint):
            generate(PROMPT, **argument)


def test_trees_are_counted_in_whole_numbers(tmp_path: Any) -> None:
    base, head = make_pair(tmp_path)
    for name in ("total_token", "depth", "top_k"):
        with pytest.raises(InputError, match=f"{name} must be a whole number, not 60.0"):
            load_pair(base, head, **{name: 60.0})
    assert TreeShape(np.int64(8), 2, 3).total_token == 8
    for field, value in (("rho", "much"), ("samples", 1.0), ("threshold", "low"), ("draft_temperature", None)):
        with pytest.raises(InputError, match=f"{field} must be a"):
            Sampling(**{"threshold": 0.1, "rho": 0.5, "samples": 1} | {field: value})


def test_a_model_in_training_mode_is_refused_until_eval_is_called(tmp_path: Any) -> None:
    base = make_base("llama", tmp_path / "base", attention_dropout=0.5)
    model = load_pair(base, make_pair(tmp_path / "pair")[1])
    usual = model.eagenerate(PROMPT, max_new_tokens=20).tolist()
    model.base_model.activation_checkpointing_enable()
    model.base_model.train()
    for generate in (model.eagenerate, model.naivegenerate):
        with pytest.raises(InputError, match=r"base model is in training mode .*; call eval\(\)"):
            generate(PROMPT, max_new_tokens=20)
    assert model.eval() is model
    assert model.eagenerate(PROMPT, max_new_tokens=20).tolist() == usual
