"""Training-time test: the head run for several steps on its own outputs, as in drafting, all of them differentiable.

Source: EAGLE-3 (Li et al. 2025, section 3.2). The entry of position t joins the feature of t with the embedding of
token t + 1 and predicts token t + 2. Step k replaces its feature by its own output at step k - 1 and its token by
t + 1 + k, stands at RoPE position t + k, and predicts token t + 2 + k: a chain drafted from t, of the tokens that
really follow. It attends to the entries of step 0 up to t, and to itself at steps 1 to k. No entry sees another one
after step 0, so only the entries that drafting starts from (the *rows* of a batch) are computed further than their keys
and values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.drafters.eagle3.head import Attention, Eagle3Head, rotate
from eagle.train.batches import Batch


def unroll(head: Eagle3Head, batch: Batch, features: Tensor, steps: int) -> list[Tensor]:
    """The head's outputs at each step.

    Args:
        head: the head; gradients reach all its parameters but ``lm_head``.
        batch: n tokens and R rows, on the head's device.
        features: (n, k * target H).
        steps: how many, at least 1.

    Returns:
        For each step (R, H) outputs after the final norm, what ``head.lm_head`` takes. A row whose predicted token
        lies beyond the end of its document (``rows_at``) has an output that means nothing.
    """
    layer, attention = head.midlayer, head.midlayer.self_attn
    # Only buffers are made here, so the tables are as wide as the weights.
    rotary = LlamaRotaryEmbedding(head.config.layer).to(features.device)
    places = torch.arange(max(batch.lengths) + steps, device=features.device)[None]
    cos, sin = (table[0] for table in rotary(head.fc.weight, places))

    # Under autocast only products are narrow: what they are added to stays as wide as the weights.
    hidden = head.project(features.to(head.fc.weight.dtype)).to(head.fc.weight.dtype)
    x, residual = layer.attention_input(_embed(head, batch.tokens.roll(-1)), hidden)
    keys = rotate(_heads(attention.k_proj(x), attention.head_dim), cos[batch.positions], sin[batch.positions])
    values = _heads(attention.v_proj(x), attention.head_dim)
    documents = [part.split(batch.lengths, dim=1) for part in (keys, values)]
    x, residual = x[batch.rows], residual[batch.rows]
    positions = batch.positions[batch.rows]
    own: list[tuple[Tensor, Tensor]] = []
    outputs: list[Tensor] = []
    for step in range(steps):
        at = cos[positions + step], sin[positions + step]
        if step:
            following = batch.tokens[torch.minimum(batch.rows + 1 + step, batch.ends)]
            x, residual = layer.attention_input(_embed(head, following), hidden)
            own.append(
                (
                    rotate(_heads(attention.k_proj(x), attention.head_dim), *at),
                    _heads(attention.v_proj(x), attention.head_dim),
                )
            )
        queries = rotate(_heads(attention.q_proj(x), attention.head_dim), *at)
        mixed = _attend(attention, queries, documents, own, batch)
        output = layer.after_attention(residual + attention.o_proj(mixed))
        normed = head.norm(output)
        hidden = normed if head.config.norm_output else output
        outputs.append(normed)
    return outputs


def _embed(head: Eagle3Head, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, head.embedding).to(head.fc.weight.dtype)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """(n, heads * d) -> (heads, n, d)."""
    return x.unflatten(1, (-1, head_dim)).transpose(0, 1)


def _attend(
    attention: Attention,
    queries: Tensor,
    documents: list[tuple[Tensor, ...]],
    own: list[tuple[Tensor, Tensor]],
    batch: Batch,
) -> Tensor:
    """Attention of the rows.

    Args:
        attention: says how heads are grouped.
        queries: (heads, R, d).
        documents: keys and values of step 0, (kv heads, length, d) for each document.
        own: keys and values (kv heads, R, d) of the rows themselves at steps 1 to k.
        batch: where the rows are.

    Returns:
        (R, heads * d).
    """
    # The query heads of one key-value head become rows of one product, so no key is copied.
    groups = attention.heads // attention.kv_heads
    queries = queries.unflatten(0, (attention.kv_heads, groups)) * attention.head_dim**-0.5
    own_scores = [(queries * key[:, None]).sum(-1, keepdim=True) for key, _ in own]
    shared: list[Tensor] = []
    weights_of_own: list[Tensor] = []
    parts = zip(
        queries.split(batch.counts, dim=2),
        *documents,
        *(scores.split(batch.counts, dim=2) for scores in own_scores),
        batch.lengths,
        batch.counts,
        strict=True,
    )
    for query, key, value, *scores_of_own, length, count in parts:
        # The last two entries of a document predict nothing inside it, and are seen by none of its rows.
        seen = length - 2
        scores = (query.flatten(1, 2) @ key[:, :seen].mT).unflatten(1, (groups, count))
        later = torch.ones(count, seen, dtype=torch.bool, device=scores.device).triu(seen - count + 1)
        scores = scores.masked_fill(later, -torch.inf)
        weights = torch.cat([scores, *scores_of_own], dim=-1).softmax(-1)
        of_document, of_own = weights.split([seen, len(scores_of_own)], dim=-1)
        shared.append((of_document.flatten(1, 2) @ value[:, :seen]).unflatten(1, (groups, count)))
        weights_of_own.append(of_own)
    mixed = torch.cat(shared, dim=2)
    if own:
        each = torch.cat(weights_of_own, dim=2).unbind(-1)
        for weight, (_, value) in zip(each, own, strict=True):
            mixed = mixed + weight[..., None] * value[:, None]
    return mixed.flatten(0, 1).transpose(0, 1).flatten(1)
