"""The form in which drafting multiplies: rounded where that is faster, and never in the way of losslessness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle.target.int8 import ENGINE, Int8Linear
from tests.tiny import load_pair, make_pair

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.skipif(ENGINE not in torch.backends.quantized.supported_engines, reason="no FBGEMM in this build of torch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_head_drafts_with_8_bits_but_of_a_model_in_double_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load_pair(*make_pair(tmp_path), dtype=dtype)
    assert model.ea_layer is not None
    assert isinstance(model.ea_layer.lm_head, Int8Linear) == (dtype != torch.float64)
    for hsd in (False, True):
        generator = torch.Generator().manual_seed(0)
        ids, _, _, info = model.eagenerate(
            PROMPT, temperature=1.0, max_new_tokens=40, log=True, hsd=hsd, generator=generator
        )
        assert ids.shape[1] == 45
        assert sum(info["accept_length"]) > 0
