"""Scaled dot-product attention for trees, as a ``transformers`` attention kernel of its own.

With grouped-query attention, ``transformers``' sdpa kernel copies every key and value head once per query head as soon
as there is more than one query token and a mask. Scoring a tree is just that, every round, over the whole context. Here
the query heads that share a key-value head become rows of one attention instead, and nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED_SDPA = "grouped_sdpa"


def grouped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of (1, heads, n, d) queries over (1, kv heads, m, d) keys; returns (1, n, heads, d).

    What is not a masked step of grouped-query attention goes to transformers' own kernel.
    """
    batch, heads, n, width = query.shape
    kv_heads = key.shape[1]
    # The mask is repeated instead of keys and values; for the many rows of a prompt that would be the larger copy.
    large = n * (heads // kv_heads) > heads * key.shape[-1]
    biased = kwargs.get("position_bias") is not None
    if attention_mask is None or attention_mask.shape[1] != 1 or heads == kv_heads or large or biased:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows = query.reshape(batch, kv_heads, heads // kv_heads * n, width)
    mask = attention_mask.repeat(1, 1, heads // kv_heads, 1)
    mixed = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(batch, heads, n, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED_SDPA, grouped_sdpa)
AttentionMaskInterface.register(GROUPED_SDPA, sdpa_mask)
