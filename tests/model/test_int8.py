"""8-bit copies of weights: close, only where they pay, and never in the way of losslessness."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from eagle.model.int8 import MOST_ROWS, Int8Linear, with_int8_weights
from tests.tiny import load_pair, make_pair

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def test_few_rows_are_close_and_many_are_exact() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 64, bias=False, dtype=torch.bfloat16)
    rounded = Int8Linear(linear)
    few, many = torch.randn(MOST_ROWS, 128).bfloat16(), torch.randn(MOST_ROWS + 1, 128).bfloat16()
    with torch.no_grad():
        error = (rounded(few) - linear(few)).float().abs().max() / linear(few).float().abs().max()
        assert error < 0.02
        assert torch.equal(rounded(many), linear(many))


def test_only_bfloat16_without_bias_on_a_cpu_is_rounded() -> None:
    module = nn.Sequential(
        nn.Linear(4, 4, bias=False, dtype=torch.bfloat16),
        nn.Linear(4, 4, dtype=torch.bfloat16),
        nn.Linear(4, 4, bias=False),
        nn.Sequential(nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)),
    )
    with_int8_weights(module)
    assert [type(layer) for layer in (module[0], module[1], module[2], module[3][0])] == [
        Int8Linear,
        nn.Linear,
        nn.Linear,
        Int8Linear,
    ]


def test_a_bfloat16_pair_drafts_with_it(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    model = load_pair(base, head, dtype=torch.bfloat16)
    assert isinstance(model.ea_layer.lm_head, Int8Linear)
    assert isinstance(model.ea_layer.midlayer.mlp.up_proj, Int8Linear)
    for hsd in (False, True):
        generator = torch.Generator().manual_seed(0)
        ids, _, _, info = model.eagenerate(
            PROMPT, temperature=1.0, max_new_tokens=60, log=True, hsd=hsd, generator=generator
        )
        assert ids.shape[1] == 65
        assert sum(info["accept_length"]) > 5
    wide = load_pair(base, head)
    assert not isinstance(wide.ea_layer.lm_head, Int8Linear)
