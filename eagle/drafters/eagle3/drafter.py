"""The EAGLE-3 drafter: extends the head over committed tokens, then grows a tree from its last output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from eagle.devices import sent
from eagle.drafters.drafter import Drafter, Drafting, Reads
from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.compiled import CompiledHead
from eagle.drafters.eagle3.head import Eagle3Head, HeadCache, HeadView
from eagle.drafters.eagle3.recorded import MOST_COMMITS, RecordedDrafts
from eagle.target.compiling import built_or_said
from eagle.target.int8 import prepare_draft_weights
from eagle.target.kv_cache import lasting
from eagle.target.memory import Memory
from eagle.target.target import PREFILL_CHUNK, PREFILL_STEP, Scores, Target
from eagle.target.text import LevelTexts, Text
from eagle.tree.chance import Chance, chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.growth import grow
from eagle.tree.retrieval import Mixture, Predict, Retrieval
from eagle.tree.selection import select
from eagle.tree.shape import CHAIN_SAMPLING, TreeShape
from eagle.tree.warping import Warper


class Steps(Protocol):
    """What a round asks of a head, compiled or not; see ``Eagle3Head``. A single row of hidden states, and of what it
    sees, may be there twice."""

    def behind(self, features: Tensor, tokens: Tensor, view: HeadView) -> tuple[Tensor, Tensor]:
        """See ``Eagle3Head.behind``."""

    def level(
        self, tokens: Tensor, parents: Tensor, hidden: Tensor, seen: Tensor, view: HeadView
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Eagle3Head.level``."""


class HeadDrafter(Drafter):
    """Drafts trees with one head.

    Args:
        head: the draft head, in evaluation mode.
    """

    name, reads = "eagle3", Reads.FEATURES

    def __init__(self, head: Eagle3Head) -> None:
        self.head = head
        self.steps: Steps = head
        self.support = head.to_target(torch.arange(head.config.draft_vocab_size, device=head.norm.weight.device))
        self.recorded: RecordedDrafts | None = None
        self._spare: HeadCache | None = None

    @cached_property
    def column_of(self) -> Mapping[int, int]:
        """The draft id of each target id that has one."""
        return {token: column for column, token in enumerate(self.support.tolist())}

    @property
    def remembers(self) -> Drafter | None:
        """See ``Drafter.remembers``."""
        return self

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> HeadDrafting:
        """See ``Drafter.begin``."""
        return HeadDrafting(self, self._cache(text.limit, largest), text, tokens)

    def _cache(self, capacity: int, largest: TreeShape) -> HeadCache:
        """An empty cache for ``capacity`` tokens and the largest tree behind them, recycled if possible."""
        needed = capacity + max(largest.most_drafted, PREFILL_STEP)
        if self.recorded is not None:
            needed = lasting(needed)
        cache, self._spare = self._spare, None
        if cache is None or cache.capacity < needed:
            return self.head.new_cache(needed)
        cache.committed = 0
        return cache

    def compile(self) -> None:
        """See ``Drafter.compile``."""
        if self.steps is self.head:
            steps = built_or_said("compiling the draft head", lambda: CompiledHead(self.head))
            self.steps = self.head if steps is None else steps
        if self.recorded is None and self.support.device.type == "cuda":
            self.recorded = built_or_said("recording drafts", self.recorded_drafts)

    @torch.inference_mode()
    def recorded_drafts(self) -> RecordedDrafts:
        """Drafts that are recorded, tried on a cache of its own."""
        recorded, cache = RecordedDrafts(self.head, self.support), self.head.new_cache(lasting(1))
        features, root = self.head.norm.weight.new_zeros(1, self.head.fc.in_features), torch.zeros(1, dtype=torch.int64)
        for sampling in (None, CHAIN_SAMPLING):
            shape = TreeShape(8, 1, 4, sampling)
            recorded.draft(cache, features, root, shape, 2, chance(shape, Warper(1.0), torch.Generator()))
        return recorded

    def recycle(self, cache: HeadCache) -> None:
        """Take a cache that is not used any more."""
        self._spare = cache


def load_head_drafter(path_or_id: str, target: Target, quantize: str | None = None) -> HeadDrafter:
    """Load a head for a target, its weights as they are multiplied.

    Args:
        path_or_id: local directory or hub id.
        target: the model to draft for.
        quantize: as the target, see ``int8.prepare_weights``.

    Raises:
        InputError: see ``load_head``.
    """
    head = load_head(path_or_id, target)
    head.join()
    prepare_draft_weights(head, quantize)
    return HeadDrafter(head)


class HeadDrafting(Drafting):
    """The head at one text. It reads each token beside the feature of the one before, so a token's keys and values are
    there once the next one is known.

    Args:
        drafter: whose head it is.
        cache: an empty one.
        text: that is written.
        tokens: of it so far.
    """

    def __init__(self, drafter: HeadDrafter, cache: HeadCache, text: Text, tokens: Sequence[int]) -> None:
        self.drafter, self.head, self.cache = drafter, drafter.head, cache
        self.tokens, self.written = tokens, text.written(tokens)
        self.prompt_length = text.prompt.shape[1]
        # How many tokens' keys and values stay, and the features of those behind them, up to the last but one.
        self._known = 0
        self._waiting: list[Tensor] = []
        self._drafted = False

    def recall(self, memory: Memory) -> None:
        """See ``Drafting.recall``."""
        self.cache.recall(memory)
        self._known = memory.known

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``."""
        features = _needed(prompt)
        # All that a restart needs to know: what else the target said of the prompt is in the cache by then.
        self._prompt_end = features[-1:].clone()
        self._waiting = [features]

    def draft(
        self,
        shape: TreeShape,
        room: int,
        chance: Chance | None,
        predict: Predict | None = None,
        mixture: Mixture | None = None,
    ) -> DraftTree:
        """See ``Drafting.draft``; with ``predict`` what is looked up competes with what the head proposes."""
        root, levels = self.tokens[-1], shape.levels(room)
        if levels < 1:
            return root_only(root)
        self.cache.committed, self._drafted = self._known, True
        features = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        following = torch.tensor(self.tokens[-len(features) :])
        support, recorded = self.drafter.support, self.drafter.recorded
        if len(following) > MOST_COMMITS:
            # A prompt, of which only the end has to be looked at.
            self._remember(features[:-1], following[:-1])
            features, following = features[-1:], following[-1:]
        if recorded is not None and predict is None and self._records(shape, levels):
            found = recorded.draft(self.cache, features, following, shape, levels, chance)
            if found is not None:
                self.cache.committed += len(following)
                return select(root, found, support, shape)
        texts = LevelTexts(self.written, support, len(self.head.embedding))
        logits, hidden = self._commit(features, following)
        level = _Level(self.drafter.steps, self.cache, hidden, texts)
        retrieval = None
        if predict is not None:
            # A match may be longer than the head's levels.
            retrieval = Retrieval(predict, self.drafter.column_of, min(shape.total_token - 1, room), mixture)
        return grow(root, texts(logits)[0], level.expand, support, shape, levels, chance, retrieval)

    def _records(self, shape: TreeShape, levels: int) -> bool:
        """Whether a draft like this is of a kind that is recorded: the last ones of a text have fewer levels."""
        alike = shape.paths is None and levels == shape.levels(shape.total_token)
        return alike and self.written is None

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``."""
        if self._drafted:
            self._known, self._waiting, self._drafted = self.cache.committed, [], False
        self._waiting.append(_needed(scores)[list(path)])

    def restart(self) -> None:
        """See ``Drafting.restart``."""
        self._known, self._waiting, self._drafted = self.prompt_length - 1, [self._prompt_end], False

    def end(self) -> None:
        """See ``Drafting.end``."""
        self.drafter.recycle(self.cache)

    def memory(self) -> Memory:
        """See ``Drafting.memory``."""
        return Memory.of([self.cache], self.cache.committed if self._drafted else self._known)

    def _commit(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the head over committed tokens; what ``predict`` says of the last.

        Args:
            features: (n, k * target H) of n tokens that the cache has not seen yet, in order.
            tokens: (n,) int64, the token after each of them; the last one is the root of the tree.
        """
        first = self.cache.committed
        end = self.cache.committed = first + len(tokens)
        features, tokens = self._there(features, tokens)
        return self.drafter.steps.behind(features, tokens, self.cache.view(end, slice(first, end)))

    def _remember(self, features: Tensor, tokens: Tensor) -> None:
        """Let the head's cache hold committed tokens, in pieces as the target reads a prompt; see ``_commit``."""
        length, first = len(tokens), self.cache.committed
        self.cache.committed += length
        features, tokens = self._there(features, tokens)
        # Filled up, and the filling is overwritten by what comes next.
        filled = -(-length // PREFILL_STEP) * PREFILL_STEP
        features = functional.pad(features, (0, 0, 0, filled - length))
        tokens = functional.pad(tokens, (0, filled - length))
        for start in range(0, length, PREFILL_CHUNK):
            piece = slice(start, start + PREFILL_CHUNK)
            hidden = self.head.project(features[piece])
            places = slice(first + start, first + start + len(hidden))
            self.head.remember(tokens[piece], hidden, self.cache.view(places.stop, places))

    def _there(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        like = self.head.norm.weight
        return features.to(like), sent(tokens, like.device)


def _needed(scores: Scores) -> Tensor:
    if scores.features is None:
        raise ValueError("a head reads the target's features")
    return scores.features


class _Level:
    """The level of a tree that the head ran on last; its keys and values lie behind the committed ones."""

    def __init__(self, steps: Steps, cache: HeadCache, hidden: Tensor, texts: LevelTexts) -> None:
        self.steps, self.cache, self.hidden, self.texts = steps, cache, hidden, texts
        self.end = self.position = cache.committed
        # What each node of the level sees of the cache; the root's own entry is a committed one.
        self.seen = torch.ones(len(hidden), cache.committed, dtype=torch.bool, device=hidden.device)

    def expand(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Run the head on the children ``tokens`` (target ids) of ``parents`` (indices into the level before)."""
        self.texts.descend(tokens, parents)
        self.end += len(tokens)
        view = self.cache.view(self.end, slice(self.position, self.position + 1))
        logits, self.hidden, self.seen = self.steps.level(tokens, parents, self.hidden, self.seen, view)
        self.position += 1
        return self.texts(logits)
