"""Texts that grow past where a model encodes positions in another way: the stock model's own, token for token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.speculation import speculation
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.positions import Switch, switch_of
from eagle.target.text import Text
from eagle.tree.warping import Warper
from tests.tiny import HEADS, head_files, load_pair, make_base, stock_model, write_head

SWITCH = 4096


def longrope(switch: int) -> dict[str, object]:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1], "long_factor": [3.0, 9.0]}
    parameters = {"rope_parameters": rope | {"original_max_position_embeddings": switch}}
    return HEADS | {"max_position_embeddings": 131072, "original_max_position_embeddings": switch} | parameters


def make_model(folder: Path, architecture: str, switch: int, **overrides: object) -> EaModel:
    base = make_base(architecture, folder / "base", vocab_size=40, **longrope(switch) | overrides)
    return load_pair(base, write_head(folder / "head", *head_files(base, draft_vocab=30)))


@pytest.fixture(scope="module", params=["phi3", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    """phi3 reads its text anew at the switch, llama goes on with the keys it has."""
    return make_model(tmp_path_factory.mktemp(request.param), request.param, SWITCH, num_hidden_layers=3)


@pytest.mark.parametrize(("length", "new_tokens"), [(4000, 20), (4090, 20), (SWITCH, 8), (5000, 8)])
def test_greedy_texts_are_the_stock_models_around_the_switch(model: EaModel, length: int, new_tokens: int) -> None:
    prompt = torch.randint(40, (1, length), generator=torch.Generator().manual_seed(0))
    ends = {"max_new_tokens": new_tokens}
    stock = model.base_model.generate(prompt, do_sample=False, attention_mask=torch.ones_like(prompt), **ends)
    assert model.naivegenerate(prompt, max_length=6000, **ends).tolist() == stock.tolist()
    assert model.eagenerate(prompt, max_length=6000, **ends).tolist() == stock.tolist()


def test_whole_paths_are_accepted_on_both_sides_of_the_switch(tmp_path: Path) -> None:
    model = make_model(tmp_path, "phi3", 64)
    accepted = [0, 0]
    for seed in range(4):
        prompt = torch.randint(40, (1, 40), generator=torch.Generator().manual_seed(seed))
        stock = model.base_model.generate(
            prompt, do_sample=False, max_new_tokens=60, attention_mask=torch.ones_like(prompt)
        )
        drafted, _, _, info = model.eagenerate(prompt, max_new_tokens=60, log=True)
        assert drafted.tolist() == stock.tolist()
        place = 41
        for more in info["accept_length"]:
            accepted[place >= 64] += more
            place += more + 1
    assert min(accepted) > 0


def test_what_is_read_anew_is_forgotten_by_a_restart(tmp_path: Path) -> None:
    model = make_model(tmp_path, "phi3", 64)
    prompt = torch.randint(40, (1, 50), generator=torch.Generator().manual_seed(0))
    texts = []
    for restarted in (False, True):
        text = Text(prompt, Warper(1.0), 90, generator=torch.Generator().manual_seed(1))
        decoding = Decoding(model.target, speculation(model.offers, Method.named(hsd=False), 1.0), text)
        if restarted:
            while len(decoding.tokens) < 80:
                decoding.step()
            decoding.restart(torch.Generator().manual_seed(1))
        while not decoding.finished:
            decoding.step()
        texts.append(decoding.tokens)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("architecture", "rereads"), [("phi3", True), ("llama", False)])
def test_whether_a_model_reads_anew_is_found_out_on_it(architecture: str, rereads: bool, tmp_path: Path) -> None:
    switched = stock_model(make_base(architecture, tmp_path, **longrope(64)))
    assert switch_of(switched) == Switch(64, rereads)


def test_encodings_alike_at_all_lengths_have_no_switch(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    for number, parameters in enumerate(({}, {"rope_parameters": rope})):
        assert switch_of(stock_model(make_base("llama", tmp_path / str(number), **parameters))) is None


def test_many_texts_side_by_side_may_not_cross_the_switch(tmp_path: Path) -> None:
    target = make_model(tmp_path, "phi3", 64).target
    target.refuse_crossing(10, 64)
    target.refuse_crossing(65, 100)
    with pytest.raises(InputError, match=r"10 to 65 tokens cross the 64 at which Phi3ForCausalLM"):
        target.refuse_crossing(10, 65)
