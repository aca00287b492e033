"""Token recycling: what the target found likely behind a token when it scored that token last.

Source: Token Recycling (Luo et al., arXiv 2408.08696). A target scores every node of a tree, and what it says of those
that are not accepted is usually thrown away. Here the likeliest successors of each are kept, and later trees are looked
up in them: from the root, token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from eagle.drafters.drafter import Drafter, Drafting, Reads
from eagle.drafters.lookup.trie import pick_tree
from eagle.drafters.vocabulary import vocabulary_sha256
from eagle.errors import InputError
from eagle.target.target import Scores
from eagle.target.text import Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape

# How often the successor of each rank is what comes next, where a token was scored before: counted over 17,500 tokens
# of answers of the embedded default to training prompts, each answer by itself (temperatures 0.6 and 1).
RANKS = (0.351, 0.091, 0.044, 0.028, 0.023, 0.017, 0.017, 0.013)
HEADER = {"format": "eagle-recycling", "version": "1"}


class RecyclingDrafter(Drafter):
    """Drafts from the target's own scores; what it knows it keeps from text to text until it is told to forget."""

    name, reads = "recycling", Reads.LOGITS

    def __init__(self) -> None:
        # At most one row of a token of the vocabulary.
        self.successors: dict[int, list[int]] = {}
        self._loaded: dict[int, list[int]] = {}

    def forget(self) -> None:
        """See ``Drafter.forget``; what was loaded stays."""
        self.successors.clear()
        self.successors.update(self._loaded)

    def save(self, file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write what is known, to go on with it another time.

        Args:
            file: of safetensors: ``tokens`` (n,) and ``successors`` (n, k).
            tokenizer: of the target.

        Raises:
            InputError: nothing is known yet, or the file cannot be written.
        """
        if not self.successors:
            raise InputError(f"{file}: no successors are known yet; decode a text first")
        arrays = {
            "tokens": np.array(list(self.successors), np.uint32),
            "successors": np.array(list(self.successors.values()), np.uint32),
        }
        try:
            save_file(arrays, file, {**HEADER, "tokenizer": vocabulary_sha256(tokenizer.get_vocab())})
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {file}: {error}") from error

    def load(self, file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Know what ``save`` wrote, and nothing else.

        Args:
            file: of ``save``.
            tokenizer: of the target.

        Raises:
            InputError: it cannot be read, is of another kind or version, or of another tokenizer.
        """
        try:
            with safe_open(str(file), framework="np") as opened:
                header = opened.metadata() or {}
                if {name: header.get(name) for name in HEADER} != HEADER:
                    raise InputError(f"{file} does not hold the successors of token recycling, or in another version")
                tokens, rows = (opened.get_tensor(name).tolist() for name in ("tokens", "successors"))
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read the successors of token recycling in {file}: {error}") from error
        if header.get("tokenizer") != vocabulary_sha256(tokenizer.get_vocab()):
            raise InputError(f"{file} was made for another tokenizer than this model's")
        self._loaded = dict(zip(tokens, rows, strict=True))
        self.forget()

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> RecyclingDrafting:
        """See ``Drafter.begin``."""
        return RecyclingDrafting(self.successors, tokens)


class RecyclingDrafting(Drafting):
    """Token recycling at one text.

    Args:
        successors: of each token, the likeliest first; shared with other texts.
        tokens: of the text so far.
    """

    def __init__(self, successors: dict[int, list[int]], tokens: Sequence[int]) -> None:
        self.successors, self.tokens = successors, tokens

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``: of the prompt only the last token's scores are known."""
        self._keep(self.tokens[-1:], prompt)

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``: the paths of largest probability, as the ranks of their tokens have it."""
        root, levels = self.tokens[-1], shape.levels(room)
        if levels < 1:
            return root_only(root)

        def predict(path: Sequence[int]) -> Mapping[int, float]:
            likeliest = self.successors.get(path[-1] if path else root, [])[: shape.top_k]
            return {token: RANKS[rank] for rank, token in enumerate(likeliest)}

        return pick_tree(root, predict, shape.total_token, levels, shape.least)

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``: of several nodes of a token the last one counts, and accepted ones before others."""
        tokens = tree.tokens.tolist()
        self._keep(tokens, scores, [*range(len(tokens)), *path])

    def restart(self) -> None:
        """See ``Drafting.restart``."""

    def end(self) -> None:
        """See ``Drafting.end``."""

    def _keep(self, tokens: Sequence[int], scores: Scores, nodes: Sequence[int] = (0,)) -> None:
        likeliest = scores.logits.topk(min(len(RANKS), scores.logits.shape[-1]), dim=-1).indices.tolist()
        for node in nodes:
            self.successors[tokens[node]] = likeliest[node]
