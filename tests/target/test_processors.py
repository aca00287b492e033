"""What a model's ``generation_config`` changes in the stock model's texts, it changes in the same way here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle.decoding.method import Method
from eagle.errors import InputError
from eagle.evaluation.audit.continuations import plain_texts, speculative_texts
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, load
from eagle.target.processors import processors_of
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.decoding.rounds import PROMPT, round_distance
from tests.tiny import load_pair, make_pair

# Tokens 6 and 2 end texts where a setting is about ends.
SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "suppress_tokens": {"suppress_tokens": [1, 4]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [0, 3, 7]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "bad_words_ids": {"bad_words_ids": [[3], [1, 4], [5, 2, 5]]},
    "forced_eos_token_id": {"forced_eos_token_id": 6},
    "sequence_bias": {"sequence_bias": [[[2], 3.0], [[1, 5], -4.0]]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.0},
    "min_new_tokens": {"min_new_tokens": 25, "eos_token_id": [6, 2]},
    "min_length": {"min_length": 25, "eos_token_id": [6, 2]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [4, 1.3], "eos_token_id": 6},
    "several": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 4,
        "suppress_tokens": [1],
        "renormalize_logits": True,
    },
}


@pytest.fixture
def configured(llama: EaModel, monkeypatch: pytest.MonkeyPatch):
    """Sets values on the generation config for the length of a test."""

    def configure(**settings: Any) -> EaModel:
        for name, value in settings.items():
            monkeypatch.setattr(llama.base_model.generation_config, name, value)
        return llama

    return configure


def stock_text(model: EaModel, prompt: torch.Tensor, new_tokens: int) -> list[list[int]]:
    ids = model.base_model.generate(
        prompt, do_sample=False, max_new_tokens=new_tokens, attention_mask=torch.ones_like(prompt)
    )
    return ids.tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_texts_are_the_stock_models(llama: EaModel, configured, name: str) -> None:
    prompts = [PROMPT, (PROMPT + 2) % 8]
    usual = [llama.eagenerate(prompt, max_new_tokens=30).tolist() for prompt in prompts]
    configured(**SETTINGS[name])
    texts = [stock_text(llama, prompt, 30) for prompt in prompts]
    assert texts != usual
    accepted = 0
    for prompt, text in zip(prompts, texts, strict=True):
        drafted, _, _, info = llama.eagenerate(prompt, max_new_tokens=30, log=True)
        assert drafted.tolist() == text
        accepted += sum(info["accept_length"])
    assert llama.naivegenerate(prompts[0], max_new_tokens=30).tolist() == texts[0]
    assert llama.eagenerate(prompts[0], max_new_tokens=30, hsd=True).tolist() == texts[0]
    assert accepted > 0


@pytest.mark.parametrize("name", ["repetition_penalty", "suppress_tokens", "no_repeat_ngram_size", "bad_words_ids"])
def test_a_round_has_exactly_the_processed_law(llama: EaModel, configured, name: str) -> None:
    """Every draw and coin of a real round above temperature 0, against the stock model's own processed law."""
    configured(**SETTINGS[name])
    for tree, rule in (("deterministic", "tokenwise"), ("hybrid", "hsd"), ("chain", "blockwise")):
        assert round_distance(llama, tree, RULES[rule], (1.0, 0.0, 3), first=2) < 1e-9


def test_that_test_sees_a_processor_that_reads_another_nodes_path(
    llama: EaModel, configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(no_repeat_ngram_size=2)
    monkeypatch.setattr("eagle.target.processors._ancestors", lambda tree, nodes, depth: nodes.new_ones(len(nodes)))
    distances = [round_distance(llama, "deterministic", RULES["tokenwise"], (1.0, 0.0, 0), first) for first in (2, 5)]
    assert max(distances) > 1e-4


def test_an_audit_draws_from_the_processed_law_on_both_sides(llama: EaModel, configured) -> None:
    configured(suppress_tokens=[0, 1, 2, 3], repetition_penalty=1.5)
    warper, generator = Warper(1.0), torch.Generator().manual_seed(0)
    processors = processors_of(llama.base_model, PROMPT, 200, frozenset())
    plain = plain_texts(llama.base_model, PROMPT, warper, 50, 3, frozenset(), generator, processors)
    drawn = speculative_texts(
        llama, Method.named(hsd=True), PROMPT, warper, 50, 3, frozenset(), generator, lambda: None, processors
    )
    assert {*plain.flatten().tolist(), *drawn.texts.flatten().tolist()} <= {4, 5, 6, 7}


def test_sampling_values_of_the_file_are_the_arguments_business(llama: EaModel, configured) -> None:
    usual = llama.eagenerate(PROMPT, temperature=1.0, max_new_tokens=20, generator=torch.Generator().manual_seed(1))
    configured(do_sample=True, temperature=0.1, top_p=0.2, top_k=2, min_p=0.3)
    again = llama.eagenerate(PROMPT, temperature=1.0, max_new_tokens=20, generator=torch.Generator().manual_seed(1))
    assert again.tolist() == usual.tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("guidance_scale", 1.5),
        ("stop_strings", ["END"]),
        ("penalty_alpha", 0.6),
        ("dola_layers", "high"),
        ("num_return_sequences", 2),
        ("max_time", 3.0),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(configured, name: str, value: object) -> None:
    model = configured(**{name: value})
    for generate in (model.eagenerate, model.naivegenerate):
        with pytest.raises(InputError, match=rf"generation_config of .* sets {name}="):
            generate(PROMPT, max_new_tokens=3)


def test_values_that_transformers_refuses_are_one_line(configured) -> None:
    with pytest.raises(InputError, match=r"generation_config of .* cannot be used: .*penalty.*; mend that file"):
        configured(repetition_penalty=-1.0).eagenerate(PROMPT)


def test_the_file_in_the_models_folder_is_what_counts(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    file = base / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.8}))
    model = load_pair(base, head)
    assert model.eagenerate(PROMPT, max_new_tokens=40).tolist() == stock_text(model, PROMPT, 40)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_beams": 3}))
    with pytest.raises(InputError, match="sets num_beams=3"):
        load(ModelChoice(base_model_path=str(base), ea_model_path=str(head), dtype="float64", device="cpu"))
