"""A separate, smaller model as the drafter: the draft model of Leviathan et al. 2023, for every kind of tree.

It is run as a target is: trees under a mask, a level at a time, and its cache keeps of what it drafted the part that
was accepted. What it reads of the real target is nothing but tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eagle import assets
from eagle.drafters.drafter import Drafter, Drafting, Reads
from eagle.drafters.levels import Levels
from eagle.drafters.vocabulary import SharedVocabulary, shared_vocabulary
from eagle.target.base import load_tokenizer
from eagle.target.compiling import compile_target
from eagle.target.kv_cache import TreeCache
from eagle.target.loading import load_target
from eagle.target.memory import Memory
from eagle.target.packed import parameter_count
from eagle.target.target import PREFILL_STEP, Scores, Target
from eagle.target.text import LevelTexts, Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.growth import Expand, grow
from eagle.tree.shape import TreeShape


class DraftModelDrafter(Drafter):
    """Drafts trees with a causal language model.

    Args:
        model: it, seen as a scorer of trees.
        vocabulary: what it shares with the target.
    """

    name, reads, knows_every_prefix = "draft", Reads.NOTHING, True

    def __init__(self, model: Target, vocabulary: SharedVocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary

    def compile(self) -> None:
        """See ``Drafter.compile``."""
        compile_target(self.model)

    @property
    def remembers(self) -> Drafter | None:
        """See ``Drafter.remembers``."""
        return self

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> DraftModelDrafting:
        """See ``Drafter.begin``."""
        # A text is not read before somebody drafts behind it, and then as a prompt: filled up.
        cache = self.model.new_cache(text.limit + largest.most_drafted + PREFILL_STEP)
        return DraftModelDrafting(self, cache, text, tokens)


class DraftModelDrafting(Drafting):
    """The draft model at one text.

    Args:
        drafter: whose model it is.
        cache: an empty one.
        text: that is written.
        tokens: of it so far.
    """

    def __init__(self, drafter: DraftModelDrafter, cache: TreeCache, text: Text, tokens: Sequence[int]) -> None:
        self.model, self.vocabulary, self.cache = drafter.model, drafter.vocabulary, cache
        self.tokens, self.written = tokens, text.written(tokens)
        self.prompt_length = text.prompt.shape[1]
        self._levels = Levels()

    def recall(self, memory: Memory) -> None:
        """See ``Drafting.recall``."""
        self.cache.recall(memory)

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``."""
        if self._within_context(1) < 1:
            # Longer than the draft model can read: nothing will be drafted.
            return
        rest = self.tokens[self.cache.committed : self.prompt_length]
        self.model.prefill(self.vocabulary.to_draft(rest)[None], self.cache, features=False)

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``."""
        root, levels = self.tokens[-1], shape.levels(self._within_context(room))
        if levels < 1:
            return root_only(root)
        root_logits, texts = self._behind_the_text()
        return grow(root, root_logits, self._expand(texts), self.vocabulary.support, shape, levels, chance)

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``."""
        if self._levels:
            self.cache.keep(self._levels.places(tree.tokens[list(path[1:])].tolist()))
            self._levels = Levels()

    def restart(self) -> None:
        """See ``Drafting.restart``."""
        self.cache.commit_prompt(self.prompt_length)
        self._levels = Levels()

    def end(self) -> None:
        """See ``Drafting.end``."""
        self.model.recycle(self.cache)

    def memory(self) -> Memory | None:
        """See ``Drafting.memory``; nothing where a longer text's positions are encoded in another way."""
        return self.cache.memory() if self.model.switch is None and self.cache.committed else None

    def law(self, chance: Chance) -> Tensor:
        """See ``Drafting.law``."""
        law = chance.of(self._behind_the_text()[0][None])[0]
        return self.vocabulary.spread(law)

    def _within_context(self, levels: int) -> int:
        """Of ``levels`` below the last token those that the draft model has positions for."""
        context = self.model.context_length
        return levels if context is None else min(levels, context - len(self.tokens))

    def _behind_the_text(self) -> tuple[Tensor, LevelTexts]:
        """Commit what is not in the cache yet; (D,) logits of what follows the text, and what processes the next."""
        # Forgets a tree that nobody learned from.
        self.cache.keep(())
        self._levels = Levels()
        # The last token is read again where all are known: it is its logits that are asked for.
        known = min(self.cache.committed, len(self.tokens) - 1)
        self.cache.commit_prompt(known)
        new = self.vocabulary.to_draft(self.tokens[known:])
        count = len(new)
        seen = torch.ones(count, count, dtype=torch.bool).tril_()
        logits = self.model.extend(new, torch.arange(count), seen, self.cache).logits[-1:]
        self.cache.keep(range(count))
        texts = LevelTexts(self.written, self.vocabulary.support, self.vocabulary.target_size)
        return texts(self.vocabulary.columns(logits))[0], texts

    def _expand(self, texts: LevelTexts) -> Expand:
        """See ``growth.Expand``."""
        depths: list[int] = []
        seen = torch.zeros(1, 0, dtype=torch.bool, device=self.model.device)

        def expand(tokens: Tensor, parents: Tensor) -> Tensor:
            nonlocal seen
            texts.descend(tokens, parents)
            count, above = len(tokens), len(self._levels)
            itself = torch.eye(count, dtype=torch.bool, device=seen.device)
            ancestors = seen[parents]
            seen = torch.cat([ancestors, itself], dim=1)
            depths.extend([above] * count)
            self._levels.add(tokens, parents)
            logits = self.model.extend(tokens, torch.tensor(depths), seen, self.cache).logits
            return texts(self.vocabulary.columns(logits))

        return expand


def load_draft_model(
    path: str, target: Target, target_path: str, quantize: str | None = None, **hf_kwargs: Any
) -> DraftModelDrafter:
    """Load a draft model for a target, where and in the precision in which the target was.

    Args:
        path: local directory or hub id.
        target: the model it drafts for.
        target_path: where the target's tokenizer is.
        quantize: as the target, see ``int8.prepare_weights``.
        **hf_kwargs: see ``load_base``; a ``quantization_config`` is for the target alone.

    Raises:
        InputError: it cannot be loaded or score trees, or has another tokenizer.
    """
    hf_kwargs.pop("quantization_config", None)
    path = assets.resolve_base(path)
    model = load_target(path, quantize, verify=False, what="the draft model", **hf_kwargs)
    sizes = [parameter_count(each.model) for each in (model, target)]
    if sizes[0] > sizes[1]:
        warnings.warn(
            f"the draft model {path} has {sizes[0]:,} parameters and its target {sizes[1]:,}: "
            "drafting will take longer than what it spares",
            stacklevel=2,
        )
    vocabulary = shared_vocabulary(
        load_tokenizer(target_path).get_vocab(),
        load_tokenizer(path).get_vocab(),
        target.vocab_size,
        model.vocab_size,
        model.device,
    )
    return DraftModelDrafter(model, vocabulary)
