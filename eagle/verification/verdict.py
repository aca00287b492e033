"""What a verification rule returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eagle.errors import InputError
from eagle.model.tree import DraftTree


@dataclass(frozen=True)
class Verdict:
    """The outcome of one round.

    Attributes:
        path: ids of the accepted nodes from the root (always accepted, first) downwards.
        next_token: () int64 on the target's device, the token after the path, drawn by the target.
    """

    path: tuple[int, ...]
    next_token: Tensor

    @property
    def accept_length(self) -> int:
        """Accepted draft tokens; neither the root nor the next token counts."""
        return len(self.path) - 1


class Rule(Protocol):
    """A verification rule."""

    def __call__(self, tree: DraftTree, target_probs: Tensor, generator: torch.Generator | None) -> Verdict:
        """Verify a tree of N nodes against (N, V) target probabilities."""
        ...


def not_finite(node: int) -> InputError:
    """The error for a row of target logits that no law can be made of."""
    return InputError(
        f"the target's logits at tree node {node} contain NaN or infinity; "
        "check the model's weights, or load it in a wider dtype (dtype=float32)"
    )
