"""The EAGLE-3 drafter: extends the head over committed tokens, then grows a tree from its last output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from eagle.drafters.eagle3.head import Eagle3Head, HeadCache
from eagle.target.target import PREFILL_CHUNK, PREFILL_STEP
from eagle.target.text import Written
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.growth import grow
from eagle.tree.shape import TreeShape


class Drafter:
    """Drafts trees with one head.

    Args:
        head: the draft head, in evaluation mode.
    """

    def __init__(self, head: Eagle3Head) -> None:
        self.head = head
        self.support = head.to_target(torch.arange(head.config.draft_vocab_size, device=head.fc.weight.device))
        self._spare: HeadCache | None = None

    def new_cache(self, capacity: int, shape: TreeShape) -> HeadCache:
        """An empty cache for ``capacity`` tokens and the largest tree behind them, recycled if possible."""
        needed = capacity + max(shape.most_drafted, PREFILL_STEP)
        cache, self._spare = self._spare, None
        if cache is None or cache.capacity < needed:
            return self.head.new_cache(needed)
        cache.committed = 0
        return cache

    def recycle(self, cache: HeadCache) -> None:
        """Take a cache that is not used any more."""
        self._spare = cache

    def draft(
        self,
        features: Tensor,
        tokens: Tensor,
        root: int,
        cache: HeadCache,
        shape: TreeShape,
        room: int,
        chance: Chance | None = None,
        written: Written | None = None,
    ) -> DraftTree:
        """Commit what the target said of the newest tokens, and draft what may follow.

        Args:
            features: (n, k * target H) features of n committed tokens the cache has not seen yet, in order.
            tokens: (n,) int64, the token after each of them; the last one is the root of the tree.
            root: the last of ``tokens``, on the host.
            cache: the head's cache.
            shape: bounds of the tree, for the temperature at hand.
            room: levels below the root that may still be emitted.
            chance: what samples are drawn from, and how; needed where ``shape`` has samples.
            written: what the target's logits are processed with; None: they are not.

        Returns:
            The tree; only its root where there is no room.
        """
        levels = shape.levels(room)
        if levels < 1:
            return root_only(root)
        level = _Level(self.head, cache, self._commit(features, tokens, cache), self.support, written)
        return grow(root, level.root_logits, level.expand, self.support, shape, levels, chance)

    def _commit(self, features: Tensor, tokens: Tensor, cache: HeadCache) -> Tensor:
        """Run the head over committed tokens, in pieces as the target reads a prompt; (1, H), the last output."""
        device, length = self.head.fc.weight.device, len(tokens)
        # The few lengths of a round need no filling up, and the filling is overwritten by what comes next.
        filled = -(-length // PREFILL_STEP) * PREFILL_STEP if length > PREFILL_STEP else length
        features = functional.pad(features.to(device), (0, 0, 0, filled - length))
        tokens = functional.pad(tokens.to(device), (0, filled - length))
        first = cache.committed
        for start in range(0, length, PREFILL_CHUNK):
            piece = slice(start, start + PREFILL_CHUNK)
            hidden = self.head.project(features[piece])
            output = self.head(tokens[piece], hidden, cache, slot=first + start, position=first + start)
            last = output[min(length - start, len(output)) - 1]
        cache.committed += length
        return last[None]


class _Level:
    """The level of a tree that the head ran on last; its keys and values lie behind the committed ones."""

    def __init__(
        self, head: Eagle3Head, cache: HeadCache, output: Tensor, support: Tensor, written: Written | None
    ) -> None:
        self.head, self.cache, self.support, self.written = head, cache, support, written
        # (k, length) target ids that the level's nodes follow, themselves included, where somebody asks.
        self.texts = None if written is None else torch.tensor([written.text], device=output.device)
        logits, self.hidden = head.predict(output)
        self.root_logits = self._processed(logits)[0]
        self.slot = self.position = cache.committed
        # What each node of the level sees among the tree's slots; the root's own entry is a committed one.
        self.seen = torch.zeros(1, 0, dtype=torch.bool, device=output.device)

    def expand(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Run the head on the children ``tokens`` (draft ids) of ``parents`` (indices into the level before)."""
        n = len(tokens)
        target_tokens = self.head.to_target(tokens)
        if self.texts is not None:
            self.texts = torch.cat([self.texts[parents], target_tokens[:, None]], dim=1)
        itself = torch.eye(n, dtype=torch.bool, device=tokens.device)
        self.seen = torch.cat([self.seen[parents], itself], dim=1)
        committed = itself.new_ones(n, self.cache.committed)
        output = self.head(
            target_tokens,
            self.hidden[parents],
            self.cache,
            self.slot,
            self.position,
            seen=torch.cat([committed, self.seen], dim=1),
        )
        logits, self.hidden = self.head.predict(output)
        self.slot += n
        self.position += 1
        return self._processed(logits)

    def _processed(self, logits: Tensor) -> Tensor:
        """(k, D) logits of what follows the level's nodes, as the target's would be."""
        if self.written is None or self.texts is None:
            return logits
        return self.written.processors.of_draft(logits, self.texts, self.support, len(self.head.embedding))
