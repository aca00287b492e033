"""Packed weights: the same layer, refused where it is not, and given back as what it was."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from eagle.errors import InputError
from eagle.target import packed
from eagle.target.int8 import quantize_weights
from eagle.target.packed import PackedLinear, Part, pack_weights, parameter_count
from tests.tiny import load_pair, make_base, make_pair

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this build of torch")


@pytest.mark.parametrize("shape", [(1,), (8,), (300,), (1, 5), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_the_layers(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 33, bias=bias), torch.randn(*shape, 48)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), F.linear(x, linear.weight, linear.bias))


def test_only_plain_layers_of_the_cpu_are_packed() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    watched = nn.Linear(4, 4)
    watched.register_forward_hook(lambda *_: None)
    module = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4, dtype=torch.float64), Scaled(4, 4), watched, nn.Embedding(4, 4)
    )
    kinds = [type(each) for each in module[1:]]
    pack_weights(module)
    assert isinstance(module[0][0], PackedLinear)
    assert [type(each) for each in module[1:]] == kinds


def test_a_packed_model_saves_what_was_loaded(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = copy.deepcopy(model.state_dict())
    count = parameter_count(model)
    pack_weights(model)
    assert parameter_count(model) == count
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prepare", [pack_weights, quantize_weights], ids=["packed", "int8"])
def test_products_of_the_same_rows_are_one(prepare: Callable[[nn.Module], None]) -> None:
    """And of other rows, in whatever order, still those of their own."""
    torch.manual_seed(0)
    module, alone = nn.Module(), {}
    for name, outputs, bias in (("q_proj", 12, True), ("k_proj", 4, True), ("v_proj", 4, True), ("o_proj", 8, False)):
        linear = nn.Linear(8, outputs, bias=bias)
        setattr(module, name, linear)
        alone[name] = nn.Sequential(copy.deepcopy(linear))
        prepare(alone[name])
    prepare(module)
    assert [type(layer) is Part for layer in module.children()] == [True, True, True, False]
    calls: list[int] = []
    module.q_proj.whole.product.register_forward_hook(lambda *_: calls.append(1))
    x, other = torch.randn(2, 5, 8)
    with torch.inference_mode():
        for name in ("q_proj", "k_proj", "v_proj", "q_proj", "k_proj", "v_proj"):
            torch.testing.assert_close(getattr(module, name)(x), alone[name](x), rtol=0, atol=1e-6)
        assert len(calls) == 2
        # A layer that never asks leaves products behind; the next rows may lie in the memory of the last ones.
        module.q_proj(x)
        x.mul_(2)
        torch.testing.assert_close(module.q_proj(x), alone["q_proj"](x), rtol=0, atol=1e-5)
        for name, rows in (("k_proj", x), ("k_proj", other), ("q_proj", x), ("v_proj", other), ("q_proj", other)):
            torch.testing.assert_close(getattr(module, name)(rows), alone[name](rows), rtol=0, atol=1e-6)


def test_what_is_joined_is_saved_as_if_it_were_not() -> None:
    module = nn.Module()
    module.gate_proj, module.up_proj = nn.Linear(8, 4), nn.Linear(8, 6)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pack_weights(module)
    assert isinstance(module.gate_proj, Part)
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_layers_that_are_not_alike_stay_apart() -> None:
    module = nn.Module()
    module.q_proj, module.k_proj, module.v_proj = nn.Linear(8, 4), nn.Linear(8, 4, bias=False), nn.Linear(8, 4)
    module.gate_proj, module.up_proj = nn.Linear(8, 4), nn.Linear(6, 4)
    pack_weights(module)
    assert {type(layer) for layer in module.children()} == {PackedLinear}


@pytest.mark.parametrize("moved", [lambda model: model.double(), lambda model: model.to("meta")])
def test_it_is_not_moved_or_converted(moved: object) -> None:
    module = nn.Sequential(nn.Linear(4, 4))
    pack_weights(module)
    with pytest.raises(InputError, match="packed for it and can be neither moved nor converted") as refused:
        moved(module)
    assert "\n" not in str(refused.value)


def test_its_memory_goes_with_it() -> None:
    gc.collect()
    before = len(packed._PACKED)
    layer = PackedLinear(nn.Linear(4, 4))
    assert len(packed._PACKED) == before + 1
    del layer
    gc.collect()
    assert len(packed._PACKED) == before


def test_texts_are_the_stock_models(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    model = load_pair(base, head, dtype=torch.float32)
    assert isinstance(model.base_model.model.layers[0].mlp.down_proj, PackedLinear)
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = stock.generate(PROMPT, max_new_tokens=40, do_sample=False)
    for hsd in (False, True):
        assert torch.equal(model.eagenerate(PROMPT, max_new_tokens=40, hsd=hsd), expected)
    assert torch.equal(model.naivegenerate(PROMPT, max_new_tokens=40), expected)
