"""The drafting of a tree, all of its levels, recorded: one launch.

A recording is of one shape of trees and one width of what the head attends to, and commits up to so many tokens first.
All else that changes from round to round is in tensors.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent, wide_dtype
from eagle.drafters.eagle3.head import Eagle3Head, HeadCache
from eagle.replay import Recorded
from eagle.tree.chance import Chance, Choices
from eagle.tree.growth import candidates, draws, needed
from eagle.tree.selection import Candidates
from eagle.tree.shape import TreeShape

# Tokens that are committed in a recording are filled up to a multiple of COMMITS, and are MOST_COMMITS at most; widths
# are multiples of WIDTH; so many recordings are kept for one cache.
COMMITS, MOST_COMMITS, WIDTH, MOST = 8, 32, 256, 32


@dataclass(frozen=True)
class _Sizes:
    """What a recording is of.

    Attributes:
        shape: of the tree.
        levels: of the tree.
        commits: tokens that are committed first, filled up.
        width: of what the head attends to.
        law: see ``Chance.law``.
    """

    shape: TreeShape
    levels: int
    commits: int
    width: int
    law: Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class _Draft:
    """A recorded drafting.

    Attributes:
        numbers: (2 + n,) int64, what it reads: tokens in the cache, the place of the last of n that are committed, and
            these.
        features: (n, k * target H), likewise.
        points: what samples are drawn with, likewise; None where nothing is sampled.
        found: what it computes.
    """

    numbers: Tensor
    features: Tensor
    points: Tensor | None
    found: Recorded[Candidates]


class RecordedDrafts:
    """Drafts trees of a head with recorded computations.

    Args:
        head: the draft head, in evaluation mode.
        support: (draft vocabulary,) int64, the target id of each draft id.
    """

    def __init__(self, head: Eagle3Head, support: Tensor) -> None:
        self._head, self._support = head, support
        self._drafts: weakref.WeakKeyDictionary[HeadCache, OrderedDict[object, _Draft]] = weakref.WeakKeyDictionary()

    def draft(
        self,
        cache: HeadCache,
        features: Tensor,
        tokens: Tensor,
        shape: TreeShape,
        levels: int,
        chance: Chance | None,
    ) -> Candidates | None:
        """Commit tokens, and find what may become nodes of a tree behind them.

        Args:
            cache: of the text; its number of committed tokens is the caller's business.
            features: (n, k * target H) of n tokens that the cache has not seen yet, ``MOST_COMMITS`` at most.
            tokens: (n,) int64 on the host, the token after each of them; the last one is the root of the tree.
            shape: of the tree.
            levels: of the tree.
            chance: see ``grow``.

        Returns:
            What holds until the next drafting; None where there is no room, or samples are not drawn by inversion.
        """
        filled = -(-len(tokens) // COMMITS) * COMMITS
        end = cache.committed + filled + max(filled, shape.most_drafted)
        if end > cache.capacity:
            return None
        choices = needed(chance).choices(draws(shape, levels)) if draws(shape, levels) else None
        if not isinstance(choices, Choices | None):
            return None
        width = min(-(-end // WIDTH) * WIDTH, cache.capacity)
        sizes = _Sizes(shape, levels, filled, width, None if chance is None else chance.law)
        numbers = torch.zeros(2 + filled, dtype=torch.int64)
        numbers[0], numbers[1] = cache.committed, len(tokens) - 1
        numbers[2 : 2 + len(tokens)] = tokens
        known = self._drafts.setdefault(cache, OrderedDict())
        if sizes not in known:
            known[sizes] = self._recorded(sizes, cache, numbers, features, choices)
            if len(known) > MOST:
                known.popitem(last=False)
            return known[sizes].found()
        known.move_to_end(sizes)
        draft = known[sizes]
        draft.numbers.copy_(numbers, non_blocking=True)
        draft.features[: len(features)] = features
        if draft.points is not None and choices is not None:
            draft.points.copy_(choices.points, non_blocking=True)
        return draft.found()

    def _recorded(
        self, sizes: _Sizes, cache: HeadCache, numbers: Tensor, features: Tensor, choices: Choices | None
    ) -> _Draft:
        """The recording for some sizes, whose inputs hold these."""
        device = self._support.device
        numbers = sent(numbers, device)
        own = features.new_zeros(sizes.commits, features.shape[1])
        own[: len(features)] = features
        points = None if choices is None else sent(choices.points, device, wide_dtype(device))

        def compute() -> Candidates:
            logits, level = _commit(self._head, cache, sizes.width, numbers, own)
            choose = None if points is None else Choices(points)
            return candidates(logits, level.expand, self._support, sizes.shape, sizes.levels, sizes.law, choose)

        return _Draft(numbers, own, points, Recorded(compute, device))


def _commit(head: Eagle3Head, cache: HeadCache, width: int, numbers: Tensor, features: Tensor) -> tuple[Tensor, _Level]:
    """Commit tokens, see ``_Draft``; (draft vocabulary,) logits of what follows the last one, and its level."""
    first, last, tokens = numbers[0], numbers[1:2], numbers[2:]
    places = torch.arange(width, device=numbers.device)
    slots = first + torch.arange(len(tokens), device=numbers.device)
    output = head(tokens, head.project(features), cache.slots(width, slots, slots), places <= slots[:, None])
    logits, hidden = head.predict(output[last])
    end = first + last + 1
    return logits[0], _Level(head, cache, width, hidden, (places < end)[None], end)


class _Level:
    """The level of a tree that the head ran on last; where its keys and values lie is in tensors.

    Args:
        head: the draft head.
        cache: of the text.
        width: positions that are attended to, under a mask.
        hidden: (1, H) of the root.
        seen: (1, width) bool, what the root sees of the cache.
        end: (1,) int64, tokens that are committed.
    """

    def __init__(self, head: Eagle3Head, cache: HeadCache, width: int, hidden: Tensor, seen: Tensor, end: Tensor):
        self._head, self._cache, self._width = head, cache, width
        self._hidden, self._seen, self._end, self._position = hidden, seen, end, end

    def expand(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """See ``growth.Expand``."""
        slots = self._end + torch.arange(len(tokens), device=tokens.device)
        # What is written by a level lies behind all before it, and only who is told to sees it.
        self._seen = self._seen[parents].scatter(1, slots[:, None], value=True)
        view = self._cache.slots(self._width, slots, self._position)
        output = self._head(tokens, self._hidden[parents], view, self._seen)
        logits, self._hidden = self._head.predict(output)
        self._end, self._position = self._end + len(tokens), self._position + 1
        return logits
