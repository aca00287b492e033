"""Attention of few queries as two products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from eagle.target.attention import few_rows

HEADS, KV_HEADS, WIDTH, PLACES = 6, 2, 8, 19


@pytest.mark.parametrize("nodes", [1, 5])
@pytest.mark.parametrize("additive", [True, False])
def test_few_rows_are_attention(nodes: int, additive: bool) -> None:
    generator = torch.Generator().manual_seed(nodes)
    query = torch.randn(2, HEADS, nodes, WIDTH, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, KV_HEADS, PLACES, WIDTH, generator=generator, dtype=torch.float64)
    seen = torch.rand(2, 1, nodes, PLACES, generator=generator) < 0.6
    seen[..., 0] = True
    mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, torch.finfo(query.dtype).min)
    grouped = query.reshape(2, KV_HEADS, HEADS // KV_HEADS, nodes, WIDTH)
    found = few_rows(grouped, key, value, (mask if additive else seen)[:, :, None], 0.3)
    wanted = F.scaled_dot_product_attention(query, key, value, seen, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found.reshape(2, HEADS, nodes, WIDTH), wanted)
