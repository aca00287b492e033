"""Losses of drafted laws against the target's, and what is measured of them, step by step.

For the target's law p of a token (restricted to the draft vocabulary, not renormalised) and the head's law q:

  cross-entropy     -sum p log q: that of the law renormalised over the draft vocabulary, weighted by its mass there. A
                    token that the head cannot draft adds nothing, and a mass near 0 makes nothing large.
  total variation   1 - sum min(p, q): how often a token sampled from q is rejected, once, by the target. Its gradient
                    is small where hardly anything is accepted.
  mix               an interpolation of the two, the same everywhere.
  adaptive          an interpolation with the weight exp(-c overlap) of cross-entropy, for each row by itself; the
                    weight has no gradient.
  log               -log (overlap / sum p): total variation whose gradient is divided by the overlap.

The last two are of "LK losses" (arXiv 2602.23881), which weights the whole batch alike.

Over the vocabulary everything is computed once, in pieces, in the forward: the gradient of the logits is known in
closed form, so neither they nor q are kept for the backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle.train.features import NOT_IN_DRAFT, Reading, rows_at_once

# Rows of one product with the weights of lm_head.
BLOCK = 2048


MIX, ADAPTIVE, LOG = LOSSES = ("mix", "adaptive", "log")


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        kind: one of ``LOSSES``.
        acceptance_weight: share of total variation in a mix; 0 is cross-entropy.
        adaptivity: the c of the adaptive one.
    """

    kind: str = MIX
    acceptance_weight: float = 0.0
    adaptivity: float = 3.0

    def __str__(self) -> str:
        if self.kind == LOG:
            return "-log overlap"
        if self.kind == ADAPTIVE:
            return f"cross-entropy exp(-{self.adaptivity:g} overlap), the rest total variation"
        return f"total variation {self.acceptance_weight:g}, the rest cross-entropy"

    def of(self, entropies: Tensor, overlaps: Tensor, mass: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Losses of (n,) rows, and what the gradients of cross-entropy and of total variation are multiplied with.

        Args:
            entropies: cross-entropies.
            overlaps: sum min(p, q).
            mass: sum p.
        """
        if self.kind == LOG:
            # No mass, no overlap: such a row says nothing.
            share = overlaps.clamp(min=torch.finfo(overlaps.dtype).tiny)
            return torch.where(overlaps > 0, (mass / share).log(), 0.0), 0.0, 1 / share
        variation: Tensor | float = self.acceptance_weight
        if self.kind == ADAPTIVE:
            variation = 1 - torch.exp(-self.adaptivity * overlaps)
        return (1 - variation) * entropies + variation * (1 - overlaps), 1 - variation, variation


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


def judge(outputs: Tensor, weight: Tensor, reading: Reading, places: Tensor, scale: Tensor, loss: Loss) -> Judged:
    """Compare the head's laws with the target's.

    Args:
        outputs: (N, H), what ``lm_head`` reads.
        weight: (D, H), the weight of ``lm_head``.
        reading: the target's laws.
        places: (N,) int64, which law each row is to have.
        scale: (N,), the weight of each row's loss in the total.
        loss: of each row.
    """
    # Under autocast the product is narrow, and so are the logits and what is kept of their gradient.
    kind = outputs.device.type
    narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else outputs.dtype
    return Judged(*_Judge.apply(outputs, weight, reading, places, scale, loss, narrow))


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
        loss: Loss,
        narrow: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = reading.law.dtype
        losses, overlaps = (torch.empty(len(outputs), dtype=wide, device=outputs.device) for _ in range(2))
        hits = torch.empty(len(outputs), dtype=torch.bool, device=outputs.device)
        learning = any(ctx.needs_input_grad[:2])
        output_slopes = torch.empty_like(outputs) if learning else None
        weight_slopes = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(outputs.device.type, enabled=False):
            narrow_weight, count = weight.to(narrow), rows_at_once(outputs.device)
            for start in range(0, len(outputs), BLOCK):
                block = slice(start, start + BLOCK)
                narrow_outputs = outputs[block].to(narrow)
                logits = narrow_outputs @ narrow_weight.mT
                for begin in range(start, start + len(logits), count):
                    chunk = slice(begin, min(begin + count, start + len(logits)))
                    of_block = logits[begin - start : begin - start + count]
                    law, favourite = reading.law[places[chunk]], reading.favourite[places[chunk], None]
                    drafted = of_block.to(wide)
                    said = drafted.gather(1, favourite.clamp(min=0)) == drafted.amax(-1, keepdim=True)
                    hits[chunk] = (said & (favourite != NOT_IN_DRAFT))[:, 0]
                    losses[chunk], overlaps[chunk], slopes = _compare(drafted, law, loss, learning)
                    if slopes is not None:
                        # Nothing reads these logits again.
                        of_block.copy_(slopes.mul_(scale[chunk, None]))
                if output_slopes is not None:
                    output_slopes[block] = logits @ narrow_weight
                if weight_slopes is not None:
                    weight_slopes += logits.mT @ narrow_outputs
        if learning:
            ctx.save_for_backward(output_slopes, weight_slopes)
        ctx.mark_non_differentiable(losses, overlaps, hits)
        return (losses * scale).sum(), losses, overlaps, hits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output_slopes, weight_slopes = ctx.saved_tensors
        of_weight = None if weight_slopes is None else gradients[0] * weight_slopes
        return gradients[0] * output_slopes, of_weight, None, None, None, None, None


def _compare(logits: Tensor, law: Tensor, loss: Loss, learning: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses, overlaps and, if asked for, the losses' gradients of (n, D) logits.

    With q = softmax(logits): cross-entropy has the gradient q sum(p) - p, total variation q (sum of q over {q < p} -
    [q < p]), since only there does the overlap grow with q.
    """
    log_q = logits.log_softmax(-1)
    entropies = -torch.linalg.vecdot(law, log_q)
    q = log_q.exp_()
    overlaps = torch.minimum(law, q).sum(-1)
    mass = law.sum(-1)
    losses, entropic, variational = loss.of(entropies, overlaps, mass)
    if not learning:
        return losses, overlaps, None
    if isinstance(variational, float) and variational == 0:
        return losses, overlaps, q.mul_(mass[:, None]).sub_(law)
    growing = torch.where(q < law, q, 0.0)
    # The factor of log is as large as the overlap is small, so growing, which is no larger, goes with it first.
    growing *= variational[:, None] if isinstance(variational, Tensor) else variational
    from_both = growing.sum(-1) + entropic * mass
    slopes = q.mul_(from_both[:, None]).sub_(growing)
    if isinstance(entropic, Tensor):
        return losses, overlaps, slopes.addcmul_(law, entropic[:, None], value=-1)
    return losses, overlaps, slopes.sub_(law, alpha=entropic)
