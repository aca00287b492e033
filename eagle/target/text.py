"""A text that a target is to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.target.processors import PathProcessors
from eagle.tree.warping import Warper


@dataclass(frozen=True)
class Text:
    """A text to be written: its prompt, its law, and where it ends.

    Attributes:
        prompt: (1, n) int64.
        warper: the law to sample from.
        limit: total tokens never to be exceeded.
        stop_ids: tokens that end the text.
        generator: source of randomness; None is torch's global CPU generator.
        processors: of the model's ``generation_config``; they come before the warper.
    """

    prompt: Tensor
    warper: Warper
    limit: int
    stop_ids: frozenset[int] = frozenset()
    generator: torch.Generator | None = None
    processors: PathProcessors | None = None


@dataclass(frozen=True)
class Written:
    """A text whose logits are processed.

    Attributes:
        processors: of the target.
        text: what was written up to the root, which is its last token.
    """

    processors: PathProcessors
    text: Sequence[int]
