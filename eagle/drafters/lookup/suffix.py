"""Suffix decoding: the longest useful match of the text's end in the text itself and in the answers before it.

Source: SuffixDecoding (Oliaro et al., arXiv 2411.04975). For each length of match there is a tree of what followed it,
ranked by how often; the length whose tree promises most accepted tokens is taken. There a tree has a budget in
proportion to the length of its match; here paths have probabilities that know it (``ngrams.ESCAPES``), and those that
are not worth scoring are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eagle.drafters.lookup.ngrams import ESCAPES
from eagle.drafters.lookup.prediction import at_temperature, escape
from eagle.drafters.lookup.retriever import Retriever, Retrieving
from eagle.drafters.lookup.suffixes import LONGEST, Place, Suffixes, following
from eagle.drafters.lookup.trie import pick_tree
from eagle.target.text import Text
from eagle.tree.retrieval import Predict
from eagle.tree.shape import TreeShape


class SuffixDrafter(Retriever):
    """Drafts with the longest matches in the text and in those before it."""

    name = "suffix"

    def __init__(self) -> None:
        self._kept: Suffixes | None = None

    def forget(self) -> None:
        """See ``Drafter.forget``."""
        self._kept = None

    def begin(self, text: Text, tokens: Sequence[int], largest: TreeShape) -> SuffixDrafting:
        """See ``Drafter.begin``."""
        texts, self._kept = self._kept or Suffixes(), None
        texts.begin(tokens)
        return SuffixDrafting(self, texts, text, tokens)

    def take(self, texts: Suffixes) -> None:
        """Take what a text that has ended leaves to the next one."""
        self._kept = texts


@dataclass(frozen=True)
class _Matches:
    """Places behind the same tokens, so many."""

    length: int
    places: list[Place]

    def behind(self, path: Sequence[int], most: int) -> dict[int, float]:
        """What may come behind a path from there."""
        counts = following(self.places, path)
        total = counts.total() + escape(ESCAPES, self.length + len(path))
        return {token: count / total for token, count in counts.most_common(most)}


class SuffixDrafting(Retrieving):
    """Suffix decoding at one text.

    Args:
        drafter: to which the texts return.
        texts: this one's, and those before it.
        text: that is written.
        tokens: of the text so far.
    """

    def __init__(self, drafter: SuffixDrafter, texts: Suffixes, text: Text, tokens: Sequence[int]) -> None:
        self._temperature = text.warper.temperature
        self._drafter, self._texts, self.tokens = drafter, texts, tokens

    def predictor(self, shape: TreeShape) -> Predict:
        """See ``Retrieving.predictor``; behind a path that the best match does not know, the longest match of its own
        speaks."""
        self._texts.read(self.tokens)
        end = list(self.tokens[-LONGEST:])
        best = max(self._by_length(end), key=lambda matches: _promise(matches, shape), default=None)

        def predict(path: Sequence[int]) -> Mapping[int, float]:
            found = {} if best is None else best.behind(path, shape.top_k)
            if not found and path:
                own = next(iter(self._by_length([*end, *path])), None)
                found = {} if own is None else own.behind((), shape.top_k)
            return at_temperature(found, self._temperature)

        return predict

    def restart(self) -> None:
        """See ``Drafting.restart``."""
        # Now: soon the text is longer, and not as it was.
        self._texts.read(self.tokens)

    def end(self) -> None:
        """See ``Drafting.end``."""
        self._texts.read(self.tokens)
        self._drafter.take(self._texts)

    def _by_length(self, context: Sequence[int]) -> list[_Matches]:
        """The matches of a context, for every length at which there are others; the longest first."""
        matches = self._texts.matches(context)
        return [
            _Matches(length, [place for other, place in matches if other >= length])
            for length in sorted({length for length, _ in matches}, reverse=True)
        ]


def _promise(matches: _Matches, shape: TreeShape) -> float:
    """Tokens that are accepted of the tree of some matches, as their probabilities have it."""
    tree = pick_tree(
        0, lambda path: matches.behind(path, shape.top_k), shape.total_token, shape.total_token - 1, shape.least
    )
    return float(tree.keys[1:].exp().sum())
