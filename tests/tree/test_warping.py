"""The law of the next token is that of transformers.generate."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from eagle.model.ea_model import EaModel
from eagle.tree.drawing import draw, uniforms
from eagle.tree.warping import Warper


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [
        (0.7, 0.0, 0),
        (1.5, 1.0, 0),
        (1.0, 0.8, 0),
        (0.7, 0.8, 20),
        (1.0, 0.0, 3),
        (3.0, 0.97, 0),
        (3.0, 0.999, 4000),
    ],
)
def test_warping_is_that_of_transformers(
    llama: EaModel, temperature: float, top_p: float, top_k: int, dtype: torch.dtype
) -> None:
    """Temperature, then top_k, then top_p; small and large nuclei in one batch."""
    generator = torch.Generator().manual_seed(0)
    logits = (
        torch.randn(6, 5000, generator=generator, dtype=dtype)
        * torch.tensor([0.1, 1, 2, 4, 8, 16], dtype=dtype)[:, None]
    )
    config = GenerationConfig(do_sample=True, temperature=temperature, top_p=top_p or 1.0, top_k=top_k)
    warpers = llama.base_model._get_logits_processor(config, input_ids_seq_length=1)
    expected = warpers(None, logits.clone()).softmax(-1)
    law = Warper(temperature, top_p, top_k)(logits)
    assert ((law > 0) != (expected > 0)).sum() == 0
    torch.testing.assert_close(law, expected)


def test_bfloat16_logits_are_widened() -> None:
    assert Warper(1.0)(torch.randn(2, 9).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("warper", [Warper(1.0), Warper(0.5, 0.9, 3)])
def test_nan_stays_to_be_reported(warper: Warper) -> None:
    logits = torch.randn(3, 600)
    logits[1, 400] = torch.nan
    assert warper(logits).isnan().all(-1).tolist() == [False, True, False]


def test_draws_follow_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    drawn = [int(draw(weights, u)) for u in uniforms(4000, torch.Generator().manual_seed(0)).tolist()]
    assert set(drawn) == {1, 3}
    # Six standard deviations of a fair count.
    assert abs(drawn.count(3) - 3000) < 6 * (4000 * 0.75 * 0.25) ** 0.5
