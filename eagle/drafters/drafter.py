"""The seam: what a drafter is to the loop that decodes, whatever it drafts with.

A drafter says what it wants to read of the target's scores. At each text it is in one state, a ``Drafting``: it reads
what the target said of the prompt, drafts trees behind the text, learns each round, starts again behind the same
prompt, and ends. Whoever has logits of what follows a path of tokens gets every kind of tree from ``eagle.tree``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor

from eagle.errors import InputError
from eagle.target.memory import Memory
from eagle.target.target import Scores
from eagle.target.text import Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape


class Reads(Enum):
    """What a drafter reads of the target's scores, beside the tokens of the text."""

    NOTHING = "nothing"
    FEATURES = "features"
    LOGITS = "logits"


class Drafting(ABC):
    """A drafter at one text."""

    def recall(self, memory: Memory) -> None:
        """In front of ``read``: this is known of the prompt's first tokens.

        Args:
            memory: by ``memory`` of a text of the drafter that ``Drafter.remembers`` names.
        """
        raise ValueError("this drafter remembers nothing")

    @abstractmethod
    def read(self, prompt: Scores) -> None:
        """The target has read the prompt.

        Args:
            prompt: logits of its last token, (1, V), and, where the drafter reads those, features of its n tokens; of a
                prompt whose beginning was remembered, of the other ones.
        """

    @abstractmethod
    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """Draft behind the text, whose last token is the root. It may be called again, with another shape.

        Args:
            shape: of the tree, for the temperature at hand; no larger than the one the drafting began with.
            room: levels below the root that may still be emitted.
            chance: what samples are drawn from, and how; needed where ``shape`` has samples.

        Returns:
            The tree; only its root where there is no room.
        """

    @abstractmethod
    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """A round is over, and the text is longer by the accepted tokens and one of the target's own.

        Args:
            tree: that was scored: the one drafted last, or only a root.
            scores: of its N nodes; the features are there where the drafter reads them.
            path: ids of the accepted nodes, the root first.
        """

    @abstractmethod
    def restart(self) -> None:
        """The text is the prompt again."""

    @abstractmethod
    def end(self) -> None:
        """The text has ended: memory may be given to the next one."""

    def memory(self) -> Memory | None:
        """What of the text a longer one may begin with, where it lies until ``end``; None where there is nothing."""
        return None

    def law(self, chance: Chance) -> Tensor:
        """(V,) law of the next token behind the text, as samples would be drawn from it; the rule ``naive_hsd`` asks
        for it behind tokens that were never drafted.

        Raises:
            InputError: a drafter whose law depends on how the text came about.
        """
        raise InputError("this drafter has no law behind tokens that it has not drafted")


class Drafter(ABC):
    """Drafts for one target.

    Attributes:
        name: in the names of methods, ``<name>/<tree>:<rule>``.
        reads: of the target's scores.
        knows_every_prefix: whether ``Drafting.law`` is there.
    """

    name: str
    reads: ClassVar[Reads]
    knows_every_prefix: ClassVar[bool] = False

    @property
    def settled(self) -> Mapping[str, Any]:
        """What its drafts depend on beside a model, as a run's record has it."""
        return {}

    def forget(self) -> None:
        """Forget what earlier texts have taught it; nothing to most drafters, which know of one text at a time."""
        return

    def compile(self) -> None:
        """Run what it computes with compiled from now on, where this machine can; nothing to most drafters."""
        return

    @property
    def remembers(self) -> Drafter | None:
        """Whose memories of texts its own begin with: itself, or a drafter within it; None: it needs none."""
        return None

    @abstractmethod
    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> Drafting:
        """A text begins.

        Args:
            text: its prompt, law and ends.
            tokens: of the text so far; whoever decodes appends to it.
            largest: shape of the largest tree that will be drafted.
        """


class NoDrafter(Drafter):
    """Drafts nothing: autoregressive decoding."""

    name, reads = "baseline", Reads.NOTHING

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> Drafting:
        """See ``Drafter.begin``."""
        return _Nothing(tokens)


class _Nothing(Drafting):
    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``."""

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``."""
        return root_only(self.tokens[-1])

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``."""

    def restart(self) -> None:
        """See ``Drafting.restart``."""

    def end(self) -> None:
        """See ``Drafting.end``."""
