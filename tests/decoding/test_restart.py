"""A decoding that is restarted behind its prompt decodes what a fresh one does."""

from __future__ import annotations

import pytest
import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.speculation import speculation
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree.warping import Warper

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
METHODS = [None, *map(Method.parse, ("eagle3", "hsd", "chain:blockwise", "draft/hybrid:hsd", "draft/paths:tokenwise"))]
METHODS.append(Method.parse("draft/chain:naive_hsd"))


def begun(model: EaModel, method: Method | None, seed: int, prompt: torch.Tensor = PROMPT) -> Decoding:
    generator = torch.Generator().manual_seed(seed)
    chosen = speculation(model.offers, method, 1.0)
    return Decoding(model.target, chosen, Text(prompt, Warper(1.0), 36, generator=generator))


def finished(decoding: Decoding) -> tuple[list[int], list[int], list[int]]:
    while not decoding.finished:
        decoding.step()
    return decoding.tokens, decoding.info["accept_length"], decoding.info["draft_length"]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:, :1]])
@pytest.mark.parametrize("method", METHODS)
def test_a_restart_is_a_fresh_start(drafters: EaModel, method: Method | None, prompt: torch.Tensor) -> None:
    accepted = 0
    for rounds in (0, 1, 5):
        decoding = begun(drafters, method, seed=1, prompt=prompt)
        for seed in (2, 3, 4):
            for _ in range(rounds):
                decoding.step()
            accepted += sum(decoding.info["accept_length"])
            decoding.restart(torch.Generator().manual_seed(seed))
            assert decoding.new_tokens == 1
        again = finished(decoding)
        assert again == finished(begun(drafters, method, seed=4, prompt=prompt))
        assert len(decoding.info["tree_time"]) == len(again[1]) == len(decoding.info["draft_time"])
    assert (accepted > 0) == (method is not None)


def test_a_text_that_has_ended_is_not_restarted(llama: EaModel) -> None:
    decoding = begun(llama, METHODS[2], seed=1)
    finished(decoding)
    with pytest.raises(ValueError, match="ended"):
        decoding.restart(None)
