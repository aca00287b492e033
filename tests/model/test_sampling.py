"""Sampling beyond temperature, top_p and top_k: min_p, a repetition penalty, stop strings, log-probabilities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from eagle.model.ea_model import EaModel
from eagle.text import before_stop
from eagle.verification import RULES
from tests.decoding.rounds import round_distances
from tests.tiny import load_pair, make_pair, stock_model, write_letters

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def base_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EaModel]:
    base, head = make_pair(tmp_path_factory.mktemp("sampling"))
    write_letters(base)
    return base, load_pair(base, head)


@pytest.fixture(scope="module")
def model(base_and_model: tuple[Path, EaModel]) -> EaModel:
    return base_and_model[1]


@pytest.mark.parametrize("tree", ["deterministic", "hybrid"])
def test_with_min_p_a_round_has_the_target_law(model: EaModel, tree: str) -> None:
    rules = [RULES["tokenwise"], RULES["hsd"]]
    assert max(round_distances(model, tree, rules, (0.7, 0.9, 0, 0.2), 2)) < 1e-9


def test_a_repetition_penalty_is_that_of_stock_generate(base_and_model: tuple[Path, EaModel]) -> None:
    base, model = base_and_model
    expected = stock_model(base).generate(PROMPT, max_new_tokens=60, do_sample=False, repetition_penalty=1.4)
    for hsd in (False, True):
        assert torch.equal(model.eagenerate(PROMPT, max_new_tokens=60, repetition_penalty=1.4, hsd=hsd), expected)
    assert torch.equal(model.naivegenerate(PROMPT, max_new_tokens=60, repetition_penalty=1.4), expected)
    assert not torch.equal(model.eagenerate(PROMPT, max_new_tokens=60), expected)


@pytest.mark.parametrize("place", [3, 8, 17])
def test_a_text_ends_with_the_token_that_completes_a_string(model: EaModel, place: int) -> None:
    free = model.eagenerate(PROMPT, max_new_tokens=60)[0].tolist()
    texts = [
        model.tokenizer.decode(free[PROMPT.shape[1] : end], skip_special_tokens=True) for end in range(len(free) + 1)
    ]
    text = texts[-1]
    stop = text[place - 3 : place]
    end = next(end for end, each in enumerate(texts) if stop in each)
    for hsd in (False, True):
        found = model.eagenerate(PROMPT, max_new_tokens=60, stop=["nowhere", stop], hsd=hsd)
        assert found[0].tolist() == free[:end]
    assert model.naivegenerate(PROMPT, max_new_tokens=60, stop=stop)[0].tolist() == free[:end]
    *_, last = model.ea_generate(PROMPT, max_new_tokens=60, stop=stop)
    assert last[0].tolist() == free[:end]
    written = texts[end]
    assert before_stop(written, [stop, "nowhere"]) == text[: text.find(stop)]
    assert before_stop(written, ["nowhere"]) == written


@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "top_p": 0.9, "hsd": True}, {"temperature": 1.0}])
@pytest.mark.parametrize("penalty", [None, 1.3])
def test_log_probabilities_are_those_of_a_stock_forward(
    base_and_model: tuple[Path, EaModel], how: dict, penalty: float | None
) -> None:
    base, model = base_and_model
    generator = torch.Generator().manual_seed(0)
    ids, new, _, info = model.eagenerate(
        PROMPT, max_new_tokens=40, log=True, logprobs=3, repetition_penalty=penalty, generator=generator, **how
    )
    assert len(info["logprobs"]) == new == 40
    said = {"temperature": how.get("temperature", 1.0), "top_p": how.get("top_p", 1.0), "top_k": 0}
    stock = stock_model(base)
    for place, each in enumerate(info["logprobs"]):
        before = ids[:, : PROMPT.shape[1] + place]
        scores = stock.generate(
            before,
            **said,
            do_sample=True,
            max_new_tokens=1,
            repetition_penalty=penalty or 1.0,
            return_dict_in_generate=True,
            output_scores=True,
        ).scores[0]
        logs = scores.log_softmax(-1)[0]
        assert each.token == int(ids[0, PROMPT.shape[1] + place])
        assert each.logprob == pytest.approx(float(logs[each.token]), abs=1e-5)
        values, tokens = logs.topk(3)
        for (token, value), expected, value_expected in zip(each.top, tokens.tolist(), values.tolist(), strict=True):
            assert value == pytest.approx(value_expected, abs=1e-5)
            assert token == expected or math.isinf(value)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"temperature": 1.0, "min_p": 1.5}, r"min_p must lie in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a finite number above 0"),
        ({"stop": ["a", ""]}, "stop must be a string or several, none of them empty"),
        ({"stop": [1]}, "stop must be a string or several"),
        ({"logprobs": 21, "log": True}, "logprobs must be 0 to 20"),
    ],
)
def test_bad_values_are_explained(model: EaModel, wrong: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        model.eagenerate(PROMPT, **wrong)
