"""Drafting without a model: what followed the same tokens before.

Trees of it are picked tokens alone, so token-wise verification accepts as much as any rule can (docs/hsd.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eagle.checks import number, whole_number
from eagle.drafters.drafter import Drafter, Drafting, Reads
from eagle.drafters.lookup.ngrams import NGrams
from eagle.drafters.lookup.prediction import predicted
from eagle.drafters.lookup.trie import pick_tree
from eagle.errors import InputError
from eagle.target.target import Scores
from eagle.target.text import Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape


@dataclass(frozen=True)
class LookupSettings:
    """What is looked up.

    Attributes:
        shortest: tokens of a match, at least.
        longest: tokens of a match, at most.
        least: the probability of a path that is worth scoring.
    """

    shortest: int = 1
    longest: int = 8
    least: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= whole_number("shortest", self.shortest) <= whole_number("longest", self.longest):
            raise InputError(
                f"a match has at least 1 token, and no fewer than its shortest: not {self.shortest} to {self.longest}"
            )
        if not 0.0 < number("least", self.least) <= 1.0:
            raise InputError(f"least must lie in (0, 1], not {self.least}")


DEFAULT_LOOKUP = LookupSettings()


class LookupDrafter(Drafter):
    """Drafts with what the text itself has said before, its prompt included.

    Args:
        settings: what is looked up.
    """

    name, reads = "lookup", Reads.NOTHING

    def __init__(self, settings: LookupSettings) -> None:
        self.settings = settings

    @property
    def settled(self) -> Mapping[str, Any]:
        """See ``Drafter.settled``."""
        return asdict(self.settings)

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> LookupDrafting:
        """See ``Drafter.begin``."""
        return LookupDrafting(self.settings, tokens)


class LookupDrafting(Drafting):
    """Look-up at one text.

    Args:
        settings: what is looked up.
        tokens: of the text so far.
    """

    def __init__(self, settings: LookupSettings, tokens: Sequence[int]) -> None:
        self.settings, self.tokens = settings, tokens
        self._context = NGrams(settings.shortest, settings.longest)

    def read(self, prompt: Scores) -> None:
        """See ``Drafting.read``."""

    def draft(self, shape: TreeShape, room: int, chance: Chance | None) -> DraftTree:
        """See ``Drafting.draft``: the likeliest paths, ``top_k`` tokens at most behind each node."""
        root, levels = self.tokens[-1], shape.levels(room)
        if levels < 1:
            return root_only(root)
        self._context.read(self.tokens)
        end = list(self.tokens[-self.settings.longest :])

        def predict(path: Sequence[int]) -> Mapping[int, float]:
            context = [*end, *path][-self.settings.longest :]
            return predicted(self._context.matches(context), self.settings.least, shape.top_k)

        return pick_tree(root, predict, shape.total_token, levels, self.settings.least)

    def learn(self, tree: DraftTree, scores: Scores, path: Sequence[int]) -> None:
        """See ``Drafting.learn``: the text has grown, which the next draft reads."""

    def restart(self) -> None:
        """See ``Drafting.restart``."""
        # Now: soon the text is longer, and not as it was.
        self._context.read(self.tokens)

    def end(self) -> None:
        """See ``Drafting.end``."""
