"""Drafters that look up what they draft: alone, or beside the candidates of a drafter with a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from eagle.drafters.drafter import Drafter, Drafting, Reads
from eagle.drafters.lookup.trie import pick_tree
from eagle.target.target import Scores
from eagle.target.text import Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.retrieval import Predict
from eagle.tree.shape import TreeShape


class Retriever(Drafter):
    """Looks up what it drafts. Its trees are picked tokens alone, so token-wise verification accepts as much of them as
    any rule can (docs/hsd.md)."""

    reads = Reads.NOTHING

    @abstractmethod
    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> Retrieving:
        """See ``Drafter.begin``."""


class Retrieving(Drafting):
    """A look-up at one text.

    Attributes:
        tokens: of the text so far.
    """

    tokens: Sequence[int]

    @abstractmethod
    def predictor(self, shape: TreeShape) -> Predict:
        """What may follow the text as it is now, below paths of tokens behind it.

        Args:
            shape: of the tree to come: ``top_k`` tokens behind a path at most, none of a smaller probability than
                ``least``.
        """

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``: the prompt is in the text."""

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``: the likeliest paths."""
        root, levels = self.tokens[-1], shape.levels(room)
        if levels < 1:
            return root_only(root)
        return pick_tree(root, self.predictor(shape), shape.total_token, levels, shape.least)

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``: the text has grown, which the next draft reads."""

    def restart(self) -> None:
        """See ``Drafting.restart``."""

    def end(self) -> None:
        """See ``Drafting.end``."""
