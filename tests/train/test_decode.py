"""Batched decoding: whatever a text is batched with, it is the text the stock model writes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from eagle.errors import InputError
from eagle.target.target import Target
from eagle.train.decode import Batch, Request, Text
from eagle.tree.warping import Warper
from tests.tiny import ARCHITECTURES, VOCAB, make_base, stock_model

STOP = frozenset({3})


def random_requests(count: int, temperature: float = 0.0) -> list[Request]:
    """Prompts of 1 to 90 tokens, answers of 1 to 40, so that rows end, are refilled, widen and shrink all the time."""
    source = torch.Generator().manual_seed(0)
    requests = []
    for number in range(count):
        length = int(torch.randint(1, 91, (), generator=source))
        new_tokens = int(torch.randint(1, 41, (), generator=source))
        prompt = torch.randint(VOCAB, (length,), generator=source).tolist()
        requests.append(Request(str(number), prompt, temperature, new_tokens, number))
    return requests


def texts(target: Target, requests: list[Request], rows: int, stop: frozenset[int] = STOP) -> dict[str, Text]:
    batch = Batch(target, rows, Warper(1.0), stop, max(request.max_new_tokens for request in requests))
    found = list(batch.decode(requests))
    assert len(found) == len(requests)
    assert batch.made == sum(len(text.tokens) for text in found)
    return {text.request.key: text for text in found}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_greedy_texts_are_those_of_the_stock_model(architecture: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base")
    stock, target = stock_model(base), Target(stock_model(base))
    requests = random_requests(14)
    endless = texts(target, requests, rows=5, stop=frozenset())
    # A token that this model writes, so that some texts end by themselves.
    stop = frozenset({max(endless.values(), key=lambda text: len(text.tokens)).tokens[-1]})
    found = texts(target, requests, rows=5, stop=stop)
    ended = 0
    for request in requests:
        prompt = torch.tensor([request.prompt])
        written = stock.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=sorted(stop),
        )[0, prompt.shape[1] :].tolist()
        text = found[request.key]
        assert text.tokens == written
        assert text.finished == (written[-1] in stop)
        ended += text.finished
    assert ended > 0


def test_float32_texts_are_those_of_the_stock_model(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    stock = stock_model(base).float()
    requests = random_requests(14)
    found = texts(Target(stock_model(base).float()), requests, rows=5, stop=frozenset())
    for request in requests:
        prompt = torch.tensor([request.prompt])
        written = stock.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=request.max_new_tokens
        )
        assert found[request.key].tokens == written[0, prompt.shape[1] :].tolist()


def test_sampled_texts_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    target = Target(stock_model(make_base("llama", tmp_path / "base")))
    requests = random_requests(20, temperature=0.8)
    mixed = [*requests[:10], *random_requests(5), *requests[10:]]
    alone, together = texts(target, requests, rows=1), texts(target, requests[::-1], rows=7)
    assert {key: text.tokens for key, text in alone.items()} == {key: text.tokens for key, text in together.items()}
    batch = Batch(target, 4, Warper(1.0), STOP, 40)
    for text in batch.decode(mixed):
        if text.request.temperature:
            assert text.tokens == alone[text.request.key].tokens


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_texts_follow_the_models_law(temperature: float, tmp_path: Path) -> None:
    """The first two tokens of many answers to one prompt, against the exact law of the stock model."""
    base = make_base("llama", tmp_path / "base")
    stock, target = stock_model(base), Target(stock_model(base))
    prompt, count = [1, 5, 2], 800
    found = texts(target, [Request(str(i), prompt, temperature, 2, i) for i in range(count)], 400, stop=frozenset())
    with torch.inference_mode():
        first = (stock(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
        pairs = torch.tensor([[*prompt, token] for token in range(VOCAB)])
        second = (stock(pairs).logits[:, -1] / temperature).softmax(-1)
    expected = count * (first[:, None] * second).flatten()
    seen = torch.zeros(VOCAB * VOCAB, dtype=torch.float64)
    for text in found.values():
        seen[text.tokens[0] * VOCAB + text.tokens[1]] += 1
    rare = expected < 5
    observed = [*seen[~rare].tolist(), float(seen[rare].sum())]
    law = [*expected[~rare].tolist(), float(expected[rare].sum())]
    assert len(law) > 10
    assert chisquare(observed, law).pvalue > 0.001


def test_top_k_keeps_the_likeliest(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    stock, target = stock_model(base), Target(stock_model(base))
    prompt = [1, 5, 2]
    batch = Batch(target, 50, Warper(1.0, top_k=2), frozenset(), 1)
    drawn = {text.tokens[0] for text in batch.decode([Request(str(i), prompt, 1.0, 1, i) for i in range(50)])}
    assert drawn == set(stock(torch.tensor([prompt])).logits[0, -1].topk(2).indices.tolist())


def test_logits_that_cannot_be_drawn_from_are_an_error(tmp_path: Path) -> None:
    model = stock_model(make_base("llama", tmp_path / "base"))
    model.lm_head.weight.data[0, 0] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(InputError, match="NaN"):
            texts(Target(model), random_requests(2, temperature), rows=2)
