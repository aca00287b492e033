"""The form in which drafting multiplies: rounded where that is faster, and never in the way of losslessness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle.target.int8 import ENGINE, Int8Linear
from tests.tiny import load_pair, make_pair

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.skipif(ENGINE not in torch.backends.quantized.supported_engines, reason="no FBGEMM in this build of torch")
@pytest.mark.parametrize(
    ("dtype", "fast", "rounded"),
    [
        (torch.float32, True, True),
        (torch.bfloat16, False, True),
        (torch.bfloat16, True, False),
        (torch.float64, True, False),
    ],
)
def test_a_head_drafts_with_8_bits_where_bfloat16_is_not_as_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fast: bool, rounded: bool
) -> None:
    monkeypatch.setattr("eagle.drafters.eagle3.weights.bfloat16_is_fast", lambda: fast)
    model = load_pair(*make_pair(tmp_path), dtype=dtype)
    assert model.ea_layer is not None
    assert isinstance(model.ea_layer.lm_head, Int8Linear) == rounded
    for hsd in (False, True):
        generator = torch.Generator().manual_seed(0)
        ids, _, _, info = model.eagenerate(
            PROMPT, temperature=1.0, max_new_tokens=40, log=True, hsd=hsd, generator=generator
        )
        assert ids.shape[1] == 45
        assert sum(info["accept_length"]) > 0
