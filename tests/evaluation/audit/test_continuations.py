"""The continuations that an audit compares: of a method, and of the stock model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from eagle.decoding.method import Method
from eagle.errors import InputError
from eagle.evaluation.audit.continuations import ENDED, ROWS, plain_texts, speculative_texts
from eagle.model.ea_model import EaModel
from eagle.tree.warping import Warper
from tests.tiny import VOCAB, load_pair, make_pair

PROMPT = torch.tensor([[3, 1, 4, 1, 5, 2, 6]])
# So cold that the likeliest token is always drawn.
COLD = Warper(1e-3)
NO_STOP: frozenset[int] = frozenset()
HSD = Method.named(hsd=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("architecture", ["llama", "mistral-window", "gemma3_text"])
def test_the_stock_model_continues_as_it_does_alone(architecture: str, tmp_path: Path) -> None:
    model = load_pair(*make_pair(tmp_path, architecture))
    # The prompt is longer than the attention window of those that have one.
    texts = plain_texts(model.base_model, PROMPT, COLD, 3, 8, NO_STOP, generator())
    stock = model.base_model.generate(PROMPT, do_sample=False, max_new_tokens=8, attention_mask=torch.ones_like(PROMPT))
    assert texts.tolist() == [stock[0, PROMPT.shape[1] :].tolist()] * 3


def test_plain_texts_follow_the_law_of_the_stock_model(llama: EaModel) -> None:
    warper, count = Warper(1.3), 3000
    texts = plain_texts(llama.base_model, PROMPT, warper, count, 3, NO_STOP, generator())
    # More prefixes than are read at a time.
    assert len(np.unique(texts[:, :2], axis=0)) > ROWS
    with torch.inference_mode():
        first = warper(llama.base_model(PROMPT).logits[:, -1])[0]
        for token in (int(first.argmax()), int(first.argmin())):
            behind = llama.base_model(torch.cat([PROMPT, torch.tensor([[token]])], dim=1)).logits[:, -1]
            second = warper(behind)[0].numpy()
            found = np.bincount(texts[texts[:, 0] == token, 1], minlength=VOCAB)
            often = second * found.sum() > 1
            assert chisquare(found[often], second[often] / second[often].sum() * found[often].sum()).pvalue > 1e-3
    assert chisquare(np.bincount(texts[:, 0], minlength=VOCAB), first.numpy() * count).pvalue > 1e-3


@pytest.mark.parametrize("method", [HSD, Method.named(hsd=False), Method("chain", "blockwise")])
def test_speculative_texts_are_the_models(llama: EaModel, method: Method) -> None:
    counted: list[None] = []
    sample = speculative_texts(llama, method, PROMPT, COLD, 4, 12, NO_STOP, generator(), lambda: counted.append(None))
    greedy = llama.naivegenerate(PROMPT, max_new_tokens=12)[0, PROMPT.shape[1] :].tolist()
    assert sample.texts.tolist() == [greedy] * 4
    assert len(counted) == 4
    assert not sample.drafted[:, 0].any()


def test_drafted_tokens_are_marked(llama: EaModel) -> None:
    """Those that the generations themselves count as accepted."""
    sample = speculative_texts(llama, HSD, PROMPT, Warper(1.0), 60, 10, NO_STOP, generator(1), list)
    _, _, _, info = llama.eagenerate(
        PROMPT, temperature=1.0, max_new_tokens=200, hsd=True, log=True, generator=generator(2)
    )
    share = sum(info["accept_length"]) / (sum(info["accept_length"]) + len(info["accept_length"]))
    assert sample.drafted[:, 1:].mean() == pytest.approx(share, abs=0.1)
    assert 0.2 < share < 0.9


def test_nothing_follows_a_stop_token(llama: EaModel) -> None:
    stop = frozenset({4, 7})
    warper = Warper(1.5)
    plain = plain_texts(llama.base_model, PROMPT, warper, 400, 6, stop, generator())
    drawn = speculative_texts(llama, HSD, PROMPT, warper, 50, 6, stop, generator(), list)
    for texts in (plain, drawn.texts):
        ended = 0
        for text in texts.tolist():
            end = next((place for place, token in enumerate(text, start=1) if token in stop), len(text))
            assert ENDED not in text[:end]
            assert text[end:] == [ENDED] * (len(text) - end)
            ended += end < len(text)
        assert 0 < ended < len(texts)
    assert not drawn.drafted[drawn.texts == ENDED].any()
    # The text that was stopped last is out of the way of what comes next.
    assert llama.eagenerate(PROMPT, max_new_tokens=9).tolist() == llama.naivegenerate(PROMPT, max_new_tokens=9).tolist()


def test_a_prompt_without_room_is_refused(llama: EaModel) -> None:
    long = torch.zeros(1, llama.target.context_length - 3, dtype=torch.int64)
    with pytest.raises(InputError, match="context"):
        speculative_texts(llama, HSD, long, COLD, 1, 4, NO_STOP, generator(), list)


def test_nan_logits_are_an_error(llama_pair: tuple[Path, Path]) -> None:
    model = load_pair(*llama_pair)
    with torch.no_grad():
        model.base_model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        plain_texts(model.base_model, PROMPT, COLD, 1, 2, NO_STOP, generator())
