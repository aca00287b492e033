"""``model.generate(custom_generate=speculative_generate)``: the texts, ends, scores and laws of stock ``generate``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as models_of_tokenizers
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from eagle import speculative_generate
from eagle.errors import InputError
from tests.tiny import VOCAB, make_base, make_draft_model, make_pair, stock_model, write_letters

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("llama", "qwen3", "gpt_neox")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return {name: make_pair(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def models(pairs: dict[str, tuple[Path, Path]]) -> dict[str, PreTrainedModel]:
    found = {name: stock_model(base) for name, (base, _) in pairs.items()}
    for name, model in found.items():
        model.name_or_path = str(pairs[name][0])
    return found


class OddAfterEven(LogitsProcessor):
    """A user's own: behind an even token odd ones are likelier."""

    def __init__(self, bonus: float = 1.5) -> None:
        self.bonus = bonus

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bonus = torch.arange(scores.shape[1]) % 2 * self.bonus
        return scores + bonus * (input_ids[:, -1:] % 2 == 0)


class Thirds(StoppingCriteria):
    """A user's own: stops when the sum of the last three new tokens is large."""

    def __init__(self, least: int = 16) -> None:
        self.least = least

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, PROMPT.shape[1] :][:, -3:].sum(-1) >= self.least


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"max_new_tokens": 60},
    "max_length": {"max_length": 23},
    "repetition_penalty": {"max_new_tokens": 60, "repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"max_new_tokens": 40, "no_repeat_ngram_size": 3},
    "bad_words_ids": {"max_new_tokens": 60, "bad_words_ids": [[6], [2, 2]]},
    "suppress_tokens": {"max_new_tokens": 60, "suppress_tokens": [1, 7]},
    "eos": {"max_new_tokens": 60, "eos_token_id": [6, 7], "pad_token_id": 0},
    "min_new_tokens": {"max_new_tokens": 60, "eos_token_id": [2, 5, 6, 7], "pad_token_id": 0, "min_new_tokens": 12},
    "forced_eos": {"max_new_tokens": 30, "forced_eos_token_id": 7, "pad_token_id": 0},
    "sequence_bias": {"max_new_tokens": 60, "sequence_bias": [[[3], 2.0], [[1, 2], -3.0]]},
    "own processor": {"max_new_tokens": 60, "logits_processor": LogitsProcessorList([OddAfterEven()])},
    "own criterion": {"max_new_tokens": 60, "stopping_criteria": StoppingCriteriaList([Thirds()])},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_texts_are_those_of_stock_generate(
    pairs: dict[str, tuple[Path, Path]], models: dict[str, PreTrainedModel], architecture: str, setting: str
) -> None:
    model, how = models[architecture], SETTINGS[setting] | {"do_sample": False}
    expected = model.generate(PROMPT, **how)
    for drafts in (
        {"ea_model_path": str(pairs[architecture][1])},
        {"ea_model_path": str(pairs[architecture][1]), "hsd": True},
        {"drafter": "lookup"},
    ):
        found = model.generate(PROMPT, custom_generate=speculative_generate, **drafts, **how)
        assert torch.equal(found, expected), drafts
    assert torch.equal(model.generate(PROMPT, **how), expected)


def test_a_draft_model_drafts_too(tmp_path: Path) -> None:
    base, draft = write_letters(make_base("llama", tmp_path / "base"), VOCAB), str(make_draft_model(tmp_path / "draft"))
    model = stock_model(base)
    model.name_or_path = str(base)
    expected = model.generate(PROMPT, max_new_tokens=40, do_sample=False)
    how = {"max_new_tokens": 40, "do_sample": False, "custom_generate": speculative_generate}
    assert torch.equal(model.generate(PROMPT, draft_model_path=draft, drafter="draft", **how), expected)


SAMPLED: dict[str, dict[str, Any]] = {
    "temperature and top_k": {"temperature": 0.8, "top_k": 5},
    "top_p and min_p": {"top_k": 0, "top_p": 0.9, "min_p": 0.05},
    "typical_p and repetition_penalty": {"top_k": 0, "typical_p": 0.9, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("setting", SAMPLED)
def test_sampled_texts_have_the_law_of_stock_generate(
    pairs: dict[str, tuple[Path, Path]], models: dict[str, PreTrainedModel], setting: str
) -> None:
    """Against the exact law of the three new tokens, of the scores that stock ``generate`` has for each prefix."""
    model, head, texts = models["llama"], str(pairs["llama"][1]), 1500
    how = SAMPLED[setting] | {"max_new_tokens": 3, "do_sample": True, "custom_generate": speculative_generate}
    law = _law(model, SAMPLED[setting], 3)
    generator = torch.Generator().manual_seed(0)
    counts: dict[tuple[int, ...], int] = dict.fromkeys(law, 0)
    rows = PROMPT.expand(texts, -1)
    found = model.generate(rows, ea_model_path=head, hsd=True, generator=generator, **how)
    for text in found[:, PROMPT.shape[1] :].tolist():
        counts[tuple(text)] += 1
    common = [text for text, p in law.items() if p * texts >= 5]
    rest = 1 - sum(law[text] for text in common)
    observed = [counts[text] for text in common] + [texts - sum(counts[text] for text in common)]
    expected = [law[text] * texts for text in common] + [rest * texts]
    if expected[-1] < 5:
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    scale = texts / sum(expected)
    assert chisquare(observed, [each * scale for each in expected]).pvalue > 1e-3


# Of three tokens, so that what each setting changes is seen in most texts.
SHORT: dict[str, dict[str, Any]] = {name: how | {"max_new_tokens": 3} for name, how in SETTINGS.items()} | {
    "max_length": {"max_length": PROMPT.shape[1] + 2},
    "repetition_penalty": {"max_new_tokens": 3, "repetition_penalty": 2.5},
    "no_repeat_ngram_size": {"max_new_tokens": 3, "no_repeat_ngram_size": 1},
    "eos": {"max_new_tokens": 3, "eos_token_id": [2, 6], "pad_token_id": 0},
    "min_new_tokens": {"max_new_tokens": 3, "eos_token_id": [2, 5], "pad_token_id": 0, "min_new_tokens": 2},
    "forced_eos": {"max_new_tokens": 3, "forced_eos_token_id": 7, "pad_token_id": 0},
    "own processor": {"max_new_tokens": 3, "logits_processor": LogitsProcessorList([OddAfterEven(5.0)])},
    # Stock generate goes on with rows that a criterion has ended, unless there is a token that ends them too.
    "own criterion": {
        "max_new_tokens": 3,
        "stopping_criteria": StoppingCriteriaList([Thirds(9)]),
        "eos_token_id": [2],
        "pad_token_id": 0,
    },
}


@pytest.mark.parametrize("setting", SHORT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_are_like_those_of_stock_generate(
    pairs: dict[str, tuple[Path, Path]], models: dict[str, PreTrainedModel], architecture: str, setting: str
) -> None:
    """Texts of all settings at temperature 1, counted beside many that stock ``generate`` samples."""
    model, head = models[architecture], str(pairs[architecture][1])
    how = SHORT[setting] | {"do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    stock = model.generate(PROMPT.expand(10_000, -1), **how)
    drafts = {"ea_model_path": head, "hsd": True, "generator": torch.Generator().manual_seed(1)}
    ours = model.generate(PROMPT.expand(600, -1), custom_generate=speculative_generate, **drafts, **how)
    counts = [Counter(map(tuple, rows[:, PROMPT.shape[1] :].tolist())) for rows in (ours, stock)]
    common = [text for text, count in counts[1].items() if count * len(ours) >= 5 * len(stock)]
    table = [[count[text] for text in common] for count in counts]
    rest = [count.total() - sum(row) for count, row in zip(counts, table, strict=True)]
    if min(rest):
        table = [[*row, more] for row, more in zip(table, rest, strict=True)]
    assert len(common) > 3
    assert chi2_contingency(table).pvalue > 1e-3


def _law(model: PreTrainedModel, setting: dict[str, Any], depth: int) -> dict[tuple[int, ...], float]:
    """Probabilities of the first new tokens."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(depth):
        longer: dict[tuple[int, ...], float] = {}
        for text, p in law.items():
            ids = torch.cat([PROMPT, torch.tensor([text], dtype=torch.int64)], dim=1)
            scores = model.generate(
                ids, **setting, do_sample=True, max_new_tokens=1, return_dict_in_generate=True, output_scores=True
            ).scores[0]
            for token, share in enumerate(scores.double().softmax(-1)[0].tolist()):
                if share > 0:
                    longer[(*text, token)] = p * share
        law = longer
    return law


class Heard(BaseStreamer):
    """Notes what it is given."""

    def __init__(self) -> None:
        self.said: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.said.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamers_hear_token_after_token_and_nothing_behind_the_end(
    pairs: dict[str, tuple[Path, Path]], models: dict[str, PreTrainedModel]
) -> None:
    how = {"max_new_tokens": 60, "do_sample": False, "stopping_criteria": StoppingCriteriaList([Thirds()])}
    stock, ours = Heard(), Heard()
    models["llama"].generate(PROMPT, streamer=stock, **how)
    drafts = {"custom_generate": speculative_generate, "ea_model_path": str(pairs["llama"][1])}
    models["llama"].generate(PROMPT, streamer=ours, **drafts, **how)
    assert ours.said == stock.said
    assert (ours.ended, len(ours.said) > 2) == (1, True)


def test_scores_and_logits_are_those_of_stock_generate(
    pairs: dict[str, tuple[Path, Path]], models: dict[str, PreTrainedModel]
) -> None:
    how = {"max_new_tokens": 30, "do_sample": False, "repetition_penalty": 1.2, "return_dict_in_generate": True}
    how |= {"output_scores": True, "output_logits": True}
    model = models["llama"]
    stock = model.generate(PROMPT, **how)
    ours = model.generate(PROMPT, custom_generate=speculative_generate, ea_model_path=str(pairs["llama"][1]), **how)
    assert torch.equal(ours.sequences, stock.sequences)
    for name in ("scores", "logits"):
        assert len(ours[name]) == len(stock[name]) == 30
        for mine, theirs in zip(ours[name], stock[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_several_texts_are_decoded_one_by_one(
    pairs: dict[str, tuple[Path, Path]], models: dict[str, PreTrainedModel]
) -> None:
    model, prompts = models["llama"], torch.tensor([[0, 0, 3, 1, 4], [2, 7, 1, 6, 5]])
    how = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": [6], "pad_token_id": 0}
    how |= {"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}
    drafts = {"custom_generate": speculative_generate, "ea_model_path": str(pairs["llama"][1])}
    expected = model.generate(prompts, **how)
    found = model.generate(prompts, **drafts, **how)
    assert torch.equal(found, expected)
    with pytest.raises(InputError, match="would read its padding"):
        model.generate(prompts, **how, **drafts, repetition_penalty=1.2)
    several = {"num_return_sequences": 3, "do_sample": True, "max_new_tokens": 10}
    assert model.generate(PROMPT, **several, **drafts).shape == (3, 15)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"num_beams": 2}, r"beam search \(num_beams\)"),
        ({"prompt_lookup_num_tokens": 2}, r"assisted decoding \(prompt_lookup_num_tokens\)"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor"),
        ({"max_new_tokens": 10_000}, "longer than the model's context of 256"),
        ({"verifier": "none"}, "verifier"),
    ],
    ids=str,
)
def test_what_it_does_not_do_is_refused_by_its_name(
    pairs: dict[str, tuple[Path, Path]], models: dict[str, PreTrainedModel], how: dict[str, Any], complaint: str
) -> None:
    drafts = {"custom_generate": speculative_generate, "ea_model_path": str(pairs["llama"][1])}
    with pytest.raises(InputError, match=complaint):
        models["llama"].generate(PROMPT, **{"max_new_tokens": 5} | drafts | how)


def test_without_anything_that_drafts_it_says_so(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(InputError, match="nothing drafts: give ea_model_path"):
        models["llama"].generate(PROMPT, max_new_tokens=5, custom_generate=speculative_generate)


STOPS = {
    "inside an accepted run": lambda text: text[8:11],
    "in the middle of a token": lambda text: text[5:7],
    "across tokens": lambda text: text[3:9],
    "several": lambda text: ["nowhere", text[10:12]],
}


@pytest.mark.parametrize("stop", STOPS)
def test_the_folder_stops_at_strings_as_stock_generate_does(tmp_path: Path, stop: str) -> None:
    """With tokens of two characters, so that a string may begin and end within one."""
    base, head = make_pair(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_pairs_of_letters())
    model = stock_model(base)
    model.name_or_path = str(base)
    free = model.generate(PROMPT, max_new_tokens=40, do_sample=False)
    text = tokenizer.decode(free[0, PROMPT.shape[1] :])
    how = {"max_new_tokens": 40, "do_sample": False, "stop_strings": STOPS[stop](text), "tokenizer": tokenizer}
    expected = model.generate(PROMPT, **how)
    assert expected.shape[1] < free.shape[1]
    heard = Heard()
    found = model.generate(
        PROMPT,
        custom_generate=str(ROOT),
        trust_remote_code=True,
        ea_model_path=str(head),
        hsd=True,
        streamer=heard,
        **how,
    )
    assert torch.equal(found, expected)
    assert [token for said in heard.said for token in said] == expected[0].tolist()
    del how["tokenizer"]
    with pytest.raises(ValueError, match="stop_strings need the tokenizer"):
        model.generate(PROMPT, custom_generate=str(ROOT), trust_remote_code=True, ea_model_path=str(head), **how)


def _pairs_of_letters() -> Tokenizer:
    pairs = [a + b for a, b in zip("abcdefgh", "ponmlkji", strict=True)]
    vocab = {token: number for number, token in enumerate([*pairs, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models_of_tokenizers.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
