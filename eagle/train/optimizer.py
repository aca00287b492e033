"""The optimizer: orthogonalised steps for the matrices inside the head, AdamW for the rest.

Sources: Muon (Jordan et al. 2024), scaled to the size of AdamW's steps (Liu et al. 2025); AdamW (Loshchilov and Hutter
2019). The rows of ``lm_head`` are a table of tokens rather than a map between hidden states, so they stay with AdamW.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from eagle.devices import bfloat16_is_fast
from eagle.errors import InputError

ADAMW, MUON = OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.95)
PEAK = "peak"
# Modules whose weights have a row for each token.
TABLES = {"lm_head", "embed_tokens"}


class Float32Muon(torch.optim.Muon):
    """Muon with its products in float32. Those of ``torch.optim.Muon`` are in bfloat16, for which CPUs without AVX-512
    have no kernels: there they take several times as long as the rest of a training step."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, scaled to the size of AdamW's."""
        for group in self.param_groups:
            momentum, decay = group["momentum"], 1.0 - group["lr"] * group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1.0 - momentum)
                ahead = parameter.grad.lerp(average, momentum)
                update = orthogonalised(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(decay).add_(update, alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """A matrix with the singular vectors of another, and singular values near 1, by Newton-Schulz iteration: X <- a X +
    (b G + c G G) X, G = X X^T, from a norm of 1 (Jordan et al. 2024).

    Args:
        matrix: (m, n) floating point.
        coefficients: a, b and c.
        steps: of the iteration.
        eps: the smallest norm that is divided by.
    """
    a, b, c = coefficients
    x = matrix.float() / matrix.float().norm().clamp(min=eps)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Optimizer:
    """One or two optimizers that take their steps together.

    Args:
        model: whose parameters they change, as far as those want a gradient.
        kind: one of ``OPTIMIZERS``.
        learning_rate: of AdamW, at its peak.
        matrix_learning_rate: of Muon, at its peak.
        weight_decay: of matrices; norms have none.

    Attributes:
        parts: of ``torch.optim``.
    """

    def __init__(
        self, model: torch.nn.Module, kind: str, learning_rate: float, matrix_learning_rate: float, weight_decay: float
    ) -> None:
        inside: list[torch.nn.Parameter] = []
        tables: list[torch.nn.Parameter] = []
        norms: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            by_muon = kind == MUON and parameter.ndim == 2 and not TABLES.intersection(name.split("."))
            (inside if by_muon else tables if parameter.ndim == 2 else norms).append(parameter)
        adamw = torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": weight_decay, PEAK: learning_rate},
                {"params": norms, "weight_decay": 0.0, PEAK: learning_rate},
            ],
            betas=BETAS,
            fused=True,
        )
        self.parts: list[torch.optim.Optimizer] = [adamw]
        if inside:
            groups = [{"params": inside, "weight_decay": weight_decay, PEAK: matrix_learning_rate}]
            slow = inside[0].device.type == "cpu" and not bfloat16_is_fast()
            self.parts.append((Float32Muon if slow else torch.optim.Muon)(groups, adjust_lr_fn="match_rms_adamw"))

    def step(self, share: float) -> None:
        """Take a step with this share of the peak learning rates, and forget the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = share * group[PEAK]
            part.step()
            part.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        """What ``load`` takes."""
        return [part.state_dict() for part in self.parts]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Go on from a state.

        Raises:
            InputError: it is of another optimizer.
        """
        if not isinstance(state, list) or len(state) != len(self.parts):
            raise InputError("the checkpoint's optimizer is of another kind")
        for part, of_part in zip(self.parts, state, strict=True):
            part.load_state_dict(of_part)
