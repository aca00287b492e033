"""8-bit copies of weights: close, only where they pay, and never in the way of losslessness."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from eagle.drafters.eagle3.int8 import MOST_ROWS, Int8WeightLinear, with_int8_weights
from tests.tiny import head_files, load_pair, make_base, write_head

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def test_few_rows_are_close_and_many_are_exact() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 64, bias=False, dtype=torch.bfloat16)
    rounded = Int8WeightLinear(linear)
    few, many = torch.randn(MOST_ROWS, 128).bfloat16(), torch.randn(MOST_ROWS + 1, 128).bfloat16()
    with torch.no_grad():
        error = (rounded(few) - linear(few)).float().abs().max() / linear(few).float().abs().max()
        assert error < 0.02
        assert torch.equal(rounded(many), linear(many))


def test_only_what_the_kernel_is_for_is_rounded() -> None:
    def linear(
        inside: int = 64, outside: int = 64, bias: bool = False, dtype: torch.dtype = torch.bfloat16
    ) -> nn.Linear:
        return nn.Linear(inside, outside, bias=bias, dtype=dtype)

    module = nn.Sequential(
        nn.Sequential(linear()), linear(bias=True), linear(dtype=torch.float32), linear(inside=48), linear(outside=96)
    )
    with_int8_weights(module)
    assert [type(layer) for layer in (module[0][0], *module[1:])] == [Int8WeightLinear, *[nn.Linear] * 4]


def test_a_bfloat16_pair_drafts_with_it(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", vocab_size=70, hidden_size=64, head_dim=16, initializer_range=0.2)
    head = write_head(tmp_path / "head", *head_files(base, draft_vocab=64, weight=0.1))
    model = load_pair(base, head, dtype=torch.bfloat16)
    assert isinstance(model.ea_layer.lm_head, Int8WeightLinear)
    for hsd in (False, True):
        generator = torch.Generator().manual_seed(0)
        ids, _, _, info = model.eagenerate(
            PROMPT, temperature=1.0, max_new_tokens=80, log=True, hsd=hsd, generator=generator
        )
        assert ids.shape[1] == 85
        assert sum(info["accept_length"]) > 0
    assert not isinstance(load_pair(base, head).ea_layer.lm_head, Int8WeightLinear)
