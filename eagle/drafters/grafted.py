"""A head's trees with what was looked up in them: picked tokens that compete with the head's own by their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eagle.drafters.drafter import Drafter, Drafting
from eagle.drafters.eagle3.drafter import HeadDrafter, HeadDrafting
from eagle.drafters.lookup.retriever import Retriever, Retrieving
from eagle.drafters.lookup.trie import pick_tree
from eagle.target.memory import Memory
from eagle.target.target import Scores
from eagle.target.text import Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree
from eagle.tree.retrieval import Mixture
from eagle.tree.shape import TreeShape

# Tokens that look-up alone has to promise for the head not to run: beside them it adds little, and on a CPU it takes a
# tenth of a round.
ENOUGH = 2.0
# Fitted to 25,000 tokens that were looked up in answers of the embedded default to training prompts, at temperatures 0,
# 0.6 and 1, between which it hardly differs: of those with a probability of 0.3 to 0.5 came 12 % where the head's was
# below 0.001, and 85 % where it was above 0.6.
MIXTURE = Mixture(bias=1.05, looked_up=0.87, proposed=0.36)


class GraftedDrafter(Drafter):
    """Drafts trees with a head and a look-up.

    Args:
        head: drafts; a drafter by itself too, and compiled as that.
        retriever: looks up.
    """

    reads = HeadDrafter.reads

    def __init__(self, head: HeadDrafter, retriever: Retriever) -> None:
        self.head, self.retriever = head, retriever
        self.name = f"{head.name}+{retriever.name}"

    @property
    def settled(self) -> Mapping[str, Any]:
        """See ``Drafter.settled``."""
        return self.retriever.settled

    def forget(self) -> None:
        """See ``Drafter.forget``."""
        self.retriever.forget()

    @property
    def remembers(self) -> Drafter | None:
        """See ``Drafter.remembers``."""
        return self.head

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> GraftedDrafting:
        """See ``Drafter.begin``."""
        return GraftedDrafting(self.head.begin(text, tokens, largest), self.retriever.begin(text, tokens, largest))


class GraftedDrafting(Drafting):
    """A head and a look-up at one text.

    Args:
        head: drafts.
        retrieving: looks up.
    """

    def __init__(self, head: HeadDrafting, retrieving: Retrieving) -> None:
        self.head, self.retrieving = head, retrieving

    def recall(self, memory: Memory) -> None:
        """See ``Drafting.recall``."""
        self.head.recall(memory)

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``."""
        self.head.read(prompt)
        self.retrieving.read(prompt)

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``: what was looked up alone where it promises enough, which depends on the text only."""
        predict, root = self.retrieving.predictor(shape), self.retrieving.tokens[-1]
        alone = pick_tree(root, predict, shape.total_token, min(shape.total_token - 1, room), shape.least)
        if float(alone.keys[1:].exp().sum()) >= ENOUGH:
            return alone
        return self.head.draft(shape, room, chance, predict, MIXTURE)

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``."""
        self.head.learn(tree, scores, path)
        self.retrieving.learn(tree, scores, path)

    def restart(self) -> None:
        """See ``Drafting.restart``."""
        self.head.restart()
        self.retrieving.restart()

    def end(self) -> None:
        """See ``Drafting.end``."""
        self.head.end()
        self.retrieving.end()

    def memory(self) -> Memory:
        """See ``Drafting.memory``: what is looked up is in the text."""
        return self.head.memory()
