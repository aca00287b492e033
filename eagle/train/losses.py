"""Losses of drafted laws against the target's, and what is measured of them, step by step.

For the target's law p of a token (restricted to the draft vocabulary, not renormalised) and the head's law q:

  cross-entropy     -sum p log q: that of the law renormalised over the draft vocabulary, weighted by its mass there. A
                    token that the head cannot draft adds nothing, and a mass near 0 makes nothing large.
  total variation   1 - sum min(p, q): how often a token sampled from q is rejected, once, by the target.
  both              an interpolation of the two.

Over the vocabulary everything is computed once, in pieces, in the forward: the gradient of the logits is known in
closed form, so neither they nor q are kept for the backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle.train.features import NOT_IN_DRAFT, Reading

# Rows of one product with the weights of lm_head, and rows of one pass over the vocabulary, which stay in the cache.
BLOCK = 2048
CHUNK = 64


@dataclass(frozen=True)
class Judged:
    """The drafts of N rows, judged.

    Attributes:
        total: (), the weighted sum of the losses; differentiable.
        losses: (N,) of each row.
        overlaps: (N,), sum min(p, q): how often a token sampled from q is accepted.
        hits: (N,) bool, the most likely token of q is the target's.
    """

    total: Tensor
    losses: Tensor
    overlaps: Tensor
    hits: Tensor


def judge(
    outputs: Tensor, weight: Tensor, reading: Reading, places: Tensor, scale: Tensor, acceptance_weight: float
) -> Judged:
    """Compare the head's laws with the target's.

    Args:
        outputs: (N, H), what ``lm_head`` reads.
        weight: (D, H), the weight of ``lm_head``.
        reading: the target's laws.
        places: (N,) int64, which law each row is to have.
        scale: (N,), the weight of each row's loss in the total.
        acceptance_weight: share of total variation in the loss; 0 is cross-entropy.
    """
    # Under autocast the product is narrow, and so are the logits and what is kept of their gradient.
    kind = outputs.device.type
    narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else outputs.dtype
    return Judged(*_Judge.apply(outputs, weight, reading, places, scale, acceptance_weight, narrow))


class _Judge(torch.autograd.Function):
    """``judge``; the gradient of the logits, for a total of gradient 1, is multiplied out in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        weight: Tensor,
        reading: Reading,
        places: Tensor,
        scale: Tensor,
        acceptance_weight: float,
        narrow: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = reading.law.dtype
        losses, overlaps = (torch.empty(len(outputs), dtype=wide, device=outputs.device) for _ in range(2))
        hits = torch.empty(len(outputs), dtype=torch.bool, device=outputs.device)
        learning = any(ctx.needs_input_grad[:2])
        output_slopes = torch.empty_like(outputs) if learning else None
        weight_slopes = torch.zeros_like(weight) if learning else None
        with torch.autocast(outputs.device.type, enabled=False):
            narrow_weight = weight.to(narrow)
            for start in range(0, len(outputs), BLOCK):
                block = slice(start, start + BLOCK)
                narrow_outputs = outputs[block].to(narrow)
                logits = narrow_outputs @ narrow_weight.mT
                for begin in range(start, start + len(logits), CHUNK):
                    chunk = slice(begin, min(begin + CHUNK, start + len(logits)))
                    of_block = logits[begin - start : begin - start + CHUNK]
                    law, favourite = reading.law[places[chunk]], reading.favourite[places[chunk], None]
                    drafted = of_block.to(wide)
                    said = drafted.gather(1, favourite.clamp(min=0)) == drafted.amax(-1, keepdim=True)
                    hits[chunk] = (said & (favourite != NOT_IN_DRAFT))[:, 0]
                    losses[chunk], overlaps[chunk], slopes = _compare(drafted, law, acceptance_weight, learning)
                    if slopes is not None:
                        # Nothing reads these logits again.
                        of_block.copy_(slopes.mul_(scale[chunk, None]))
                if output_slopes is not None and weight_slopes is not None:
                    output_slopes[block] = logits @ narrow_weight
                    weight_slopes += logits.mT @ narrow_outputs
        if learning:
            ctx.save_for_backward(output_slopes, weight_slopes)
        ctx.mark_non_differentiable(losses, overlaps, hits)
        return (losses * scale).sum(), losses, overlaps, hits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output_slopes, weight_slopes = ctx.saved_tensors
        return gradients[0] * output_slopes, gradients[0] * weight_slopes, None, None, None, None, None


def _compare(
    logits: Tensor, law: Tensor, acceptance_weight: float, learning: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses, overlaps and, if asked for, the losses' gradients of (n, D) logits.

    With q = softmax(logits): cross-entropy has the gradient q sum(p) - p, total variation q (sum of q over {q < p} -
    [q < p]), since only there does the overlap grow with q.
    """
    log_q = logits.log_softmax(-1)
    entropies = -torch.linalg.vecdot(law, log_q)
    q = log_q.exp_()
    overlaps = torch.minimum(law, q).sum(-1)
    losses = (1 - acceptance_weight) * entropies + acceptance_weight * (1 - overlaps)
    if not learning:
        return losses, overlaps, None
    if acceptance_weight == 0:
        return losses, overlaps, q.mul_(law.sum(-1, keepdim=True)).sub_(law)
    growing = torch.where(q < law, q, 0.0)
    from_both = acceptance_weight * growing.sum(-1) + (1 - acceptance_weight) * law.sum(-1)
    slopes = q.mul_(from_both[:, None]).sub_(growing.mul_(acceptance_weight))
    return losses, overlaps, slopes.sub_(law, alpha=1 - acceptance_weight)
