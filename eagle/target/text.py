"""A text that a target is to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        ends: makes, for one writing of the text, what is told its new tokens one by one and says whether one ends it.
    """

    prompt: Tensor
    warper: Warper
    limit: int
    stop_ids: frozenset[int] = frozenset()
    generator: torch.Generator | None = None
    processors: PathProcessors | None = None
    ends: Callable[[], Callable[[int], bool]] | None = None

    def written(self, tokens: Sequence[int]) -> Written | None:
        """What drafting has to know of the text so far, whose tokens these are; None where logits are not processed."""
        return None if self.processors is None else Written(self.processors, tokens)


@dataclass(frozen=True)
class Written:
    """A text whose logits are processed.

    Attributes:
        processors: of the target.
        text: what was written up to the root, which is its last token; it grows.
    """

    processors: PathProcessors
    text: Sequence[int]


class LevelTexts:
    """Processes a drafter's logits level by level of a growing tree, as the target's would be.

    Args:
        written: the text; None: logits stay as they are.
        support: (D,) int64, the target ids of the columns of the logits.
        vocab_size: V of the target.
    """

    def __init__(self, written: Written | None, support: Tensor, vocab_size: int) -> None:
        self._written, self._support, self._vocab_size = written, support, vocab_size
        # (k, length) target ids that the level's nodes follow, themselves included.
        self._texts = None if written is None else torch.tensor([list(written.text)], device=support.device)

    def descend(self, tokens: Tensor, parents: Tensor) -> None:
        """The next level: (k,) target ids of its tokens, (k,) the index of each one's parent in the level before."""
        if self._texts is not None:
            self._texts = torch.cat([self._texts[parents], tokens[:, None]], dim=1)

    def __call__(self, logits: Tensor) -> Tensor:
        """(k, D) logits of what follows the level's nodes -> the same, processed."""
        if self._written is None or self._texts is None:
            return logits
        return self._written.processors.of_draft(logits, self._texts, self._support, self._vocab_size)
