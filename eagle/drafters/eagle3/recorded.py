"""The drafting of a tree, all of its levels, recorded: one launch.

A recording is of one shape of trees and one width of what the head attends to, and commits up to so many tokens first.
All else that changes from round to round is in tensors.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle.devices import sent, wide_dtype
from eagle.drafters.eagle3.head import Eagle3Head, HeadCache, HeadView
from eagle.launches import CompiledForms, Recorded
from eagle.tree.chance import Chance, Choices
from eagle.tree.drawing import shares_of
from eagle.tree.growth import candidates, draws, needed, parts_of_mass, sampled_by
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
        parts: see ``growth.parts_of_mass``, likewise; None: as well.
        found: what it computes.
    """

    numbers: Tensor
    features: Tensor
    points: Tensor | None
    parts: Tensor | None
    found: Recorded[Candidates]


class RecordedDrafts:
    """Drafts trees of a head with recorded computations.

    Args:
        head: the draft head, in evaluation mode.
        support: (draft vocabulary,) int64, the target id of each draft id.
    """

    def __init__(self, head: Eagle3Head, support: Tensor) -> None:
        self._head, self._support, self._steps = head, support, _Steps(support.device)
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
        padding = [0] * (filled - len(tokens))
        numbers = torch.tensor([cache.committed, len(tokens) - 1, *tokens.tolist(), *padding])
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
        parts = None if sizes.shape.sampling is None else parts_of_mass(sizes.shape.sampling, features)

        def compute() -> Candidates:
            places = torch.arange(sizes.width, device=device)
            slots = numbers[0] + torch.arange(sizes.commits, device=device)
            last, end = numbers[1:2], numbers[:1] + numbers[1:2] + 1
            seen = places <= slots[:, None]
            keys, values = cache.keys[:, :, : sizes.width], cache.values[:, :, : sizes.width]
            tables = keys, values, cache.cos, cache.sin
            logits, hidden = self._steps.commit(self._head, numbers[2:], own, last, seen, slots, *tables)
            level = _Level(self._head, self._steps.level, tables, hidden, (places < end)[None], end)
            sample = None
            if points is not None and parts is not None:
                sample = _Samples(self._steps.sample, parts, shares_of(points))
            return candidates(logits[0], level.expand, self._support, sizes.shape, sizes.levels, sizes.law, sample)

        return _Draft(numbers, own, points, parts, Recorded(compute, device))


class _Steps:
    """What a recording is made of, compiled on a GPU.

    Args:
        device: the head's.
    """

    def __init__(self, device: torch.device) -> None:
        self._forms: dict[Callable[..., Any], CompiledForms] = {}
        if device.type == "cuda":
            self._forms = {
                function: CompiledForms(function, any_sizes=True) for function in (_commit, _level, sampled_by)
            }

    def commit(self, *args: Any) -> tuple[Tensor, Tensor]:
        """See ``_commit``."""
        found: tuple[Tensor, Tensor] = self._run(_commit, None, args)
        return found

    def level(self, head: Eagle3Head, tokens: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See ``_level``."""
        parents = len(args[1])
        found: tuple[Tensor, Tensor, Tensor] = self._run(
            _level, (len(tokens) == 1, parents == 1), (head, tokens, *args)
        )
        return found

    def sample(
        self, pool: Tensor, picked: Tensor, missing: Tensor, parent_keys: Tensor, parts: Tensor, taken: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """See ``growth.sampled_by``."""
        form = (len(pool) == 1, picked.shape[1] == 1, len(parts))
        args = (pool, picked, missing, parent_keys, parts, taken)
        found: tuple[Tensor, list[Tensor], Tensor] = self._run(sampled_by, form, args)
        return found

    def _run(self, function: Callable[..., Any], form: object, args: tuple[Any, ...]) -> Any:
        compiled = self._forms.get(function)
        return function(*args) if compiled is None else compiled(form, *args)


def _commit(
    head: Eagle3Head,
    tokens: Tensor,
    features: Tensor,
    last: Tensor,
    seen: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor]:
    """Commit (n,) tokens; what ``Eagle3Head.predict`` says of one of them, whose place is (1,) ``last``."""
    view = HeadView(keys, values, cos[slots], sin[slots], slots)
    return head.predict(head(tokens, head.project(features), view, seen)[last])


def _level(
    head: Eagle3Head,
    tokens: Tensor,
    parents: Tensor,
    hidden: Tensor,
    seen: Tensor,
    end: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """A level of n nodes whose own keys and values go to the places from (1,) ``end`` on: (n, draft vocabulary) logits,
    (n, H) hidden states, and (n, width) what it sees."""
    slots = end + torch.arange(len(tokens), device=tokens.device)
    # What is written by a level lies behind all before it, and only who is told to sees it.
    seen = seen[parents].scatter(1, slots[:, None], value=True)
    output = head(tokens, hidden[parents], HeadView(keys, values, cos[position], sin[position], slots), seen)
    return *head.predict(output), seen


class _Level:
    """The level of a tree that the head ran on last; where its keys and values lie is in tensors.

    Args:
        head: the draft head.
        step: runs it on a level.
        tables: the cache's keys and values, and its tables of cosines and sines.
        hidden: (1, H) of the root.
        seen: (1, width) bool, what the root sees of the cache.
        end: (1,) int64, tokens that are committed.
    """

    def __init__(
        self,
        head: Eagle3Head,
        step: Callable[..., tuple[Tensor, Tensor, Tensor]],
        tables: tuple[Tensor, ...],
        hidden: Tensor,
        seen: Tensor,
        end: Tensor,
    ) -> None:
        self._head, self._step, self._tables = head, step, tables
        # Not one tensor: what is compiled for the first level would take them for one in all.
        self._hidden, self._seen, self._end, self._position = hidden, seen, end, end.clone()

    def expand(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """See ``growth.Expand``."""
        logits, self._hidden, self._seen = self._step(
            self._head, tokens, parents, self._hidden, self._seen, self._end, self._position, *self._tables
        )
        self._end, self._position = self._end + len(tokens), self._position + 1
        return logits


class _Samples:
    """Draws the samples of a tree, see ``growth.Sample``.

    Args:
        draw: see ``growth.sampled_by``.
        parts: (samples,) see ``growth.parts_of_mass``.
        taken: for all levels, see ``drawing.shares_of``.
    """

    def __init__(self, draw: Callable[..., tuple[Tensor, list[Tensor], Tensor]], parts: Tensor, taken: Tensor) -> None:
        self._draw, self._parts, self._taken, self._used = draw, parts, taken, 0

    def __call__(
        self, pool: Tensor, picked: Tensor, missing: Tensor, parent_keys: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """See ``growth.Sample``."""
        samples = len(self._parts)
        first, self._used = self._used, self._used + samples * len(pool)
        taken = self._taken[first : self._used].view(samples, -1)
        return self._draw(pool, picked, missing, parent_keys, self._parts, taken)
