"""The head's part of a round, compiled: what commits the tokens of a round, and what runs a level of a tree.

Each is one function for every number of tokens or nodes behind a text of every length. The compiler makes something
else of a single row, so committing one token is a function of its own, and so is a level of one node; and what such a
level, or the root, leaves for the next one are two equal rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.drafters.eagle3.head import Eagle3Head, HeadView
from eagle.launches import CompiledForms, mark_varying

# A text, the level above, and a level: sizes that nothing in a head has by itself.
TEXT, ABOVE, LEVEL = 131, 17, 13


class CompiledHead:
    """``Eagle3Head.behind`` and ``Eagle3Head.level``, compiled at once.

    Args:
        head: the draft head, in evaluation mode.
    """

    def __init__(self, head: Eagle3Head) -> None:
        self._head = head
        self._behind = CompiledForms(_behind)
        self._level = CompiledForms(_level)
        self._warm_up()

    def behind(self, features: Tensor, tokens: Tensor, view: HeadView) -> tuple[Tensor, Tensor]:
        """See ``Eagle3Head.behind``; (2, H) hidden states."""
        found: tuple[Tensor, Tensor] = self._behind(len(tokens) == 1, self._head, features, tokens, view)
        return found

    def level(
        self, tokens: Tensor, parents: Tensor, hidden: Tensor, seen: Tensor, view: HeadView
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Eagle3Head.level``; of one node, above or here, two rows of hidden states and of what it sees."""
        found: tuple[Tensor, Tensor, Tensor] = self._level(
            len(tokens) == 1, self._head, tokens, parents, hidden, seen, view
        )
        return found

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Run on made-up input, with sizes marked that will vary."""
        head = self._head
        cache = head.new_cache(TEXT + LEVEL)
        like = head.norm.weight
        for count in (1, LEVEL):
            features = like.new_zeros(count, head.fc.in_features)
            tokens = torch.zeros(count, dtype=torch.int64, device=like.device)
            view = cache.view(TEXT, slice(TEXT - count, TEXT))
            mark_varying((features, tokens, tuple(view)), (TEXT, LEVEL))
            self.behind(features, tokens, view)
        for count in (1, LEVEL):
            tokens, parents = torch.zeros(2, count, dtype=torch.int64, device=like.device)
            hidden = like.new_zeros(ABOVE, head.config.layer.hidden_size)
            seen = torch.ones(ABOVE, TEXT, dtype=torch.bool, device=like.device)
            view = cache.view(TEXT + count, slice(TEXT, TEXT + 1))
            mark_varying((tokens, parents, hidden, seen, tuple(view)), (TEXT, TEXT + count, ABOVE, LEVEL))
            self.level(tokens, parents, hidden, seen, view)


def _behind(head: Eagle3Head, features: Tensor, tokens: Tensor, view: HeadView) -> tuple[Tensor, Tensor]:
    logits, hidden = head.behind(features, tokens, view)
    return logits, _two(hidden)


def _level(
    head: Eagle3Head, tokens: Tensor, parents: Tensor, hidden: Tensor, seen: Tensor, view: HeadView
) -> tuple[Tensor, Tensor, Tensor]:
    logits, hidden, seen = head.level(tokens, parents, hidden, seen, view)
    return logits, _two(hidden), _two(seen)


def _two(rows: Tensor) -> Tensor:
    """(n, s) rows, at least two of them."""
    return rows.repeat(2, 1) if len(rows) == 1 else rows
