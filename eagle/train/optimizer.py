"""The optimizer: orthogonalised steps for the matrices inside the head, AdamW for the rest.

Sources: Muon (Jordan et al. 2024), scaled to the size of AdamW's steps (Liu et al. 2025); AdamW (Loshchilov and Hutter
2019). The rows of ``lm_head`` are a table of tokens rather than a map between hidden states, so they stay with AdamW.
"""

from __future__ import annotations

from typing import Any

import torch

from eagle.drafters.eagle3.head import Eagle3Head
from eagle.errors import InputError

ADAMW, MUON = OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.95)
PEAK = "peak"


class Optimizer:
    """One or two optimizers that take their steps together.

    Args:
        head: whose parameters they change.
        kind: one of ``OPTIMIZERS``.
        learning_rate: of AdamW, at its peak.
        matrix_learning_rate: of Muon, at its peak.
        weight_decay: of matrices; norms have none.

    Attributes:
        parts: of ``torch.optim``.
    """

    def __init__(
        self, head: Eagle3Head, kind: str, learning_rate: float, matrix_learning_rate: float, weight_decay: float
    ) -> None:
        inside: list[torch.nn.Parameter] = []
        tables: list[torch.nn.Parameter] = []
        norms: list[torch.nn.Parameter] = []
        for name, parameter in head.named_parameters():
            by_muon = kind == MUON and parameter.ndim == 2 and not name.startswith("lm_head.")
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
            self.parts.append(torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw"))

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
