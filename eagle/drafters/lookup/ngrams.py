"""What followed the n-grams of a text before.

Sources: prompt lookup (Saxena 2023); the context-dependent database of Hierarchy Drafting (arXiv 2502.05609).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """What followed an n-gram.

    Attributes:
        length: n.
        counts: how often each token did that ever did: the most frequent first, of those the one seen last.
    """

    length: int
    counts: dict[int, int]


class NGrams:
    """The n-grams of a text that grows, and what followed them.

    Args:
        shortest: n.
        longest: n.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest, self.longest = shortest, longest
        self._text: list[int] = []
        # For each n-gram, and each token that followed it, the places where that token stands, in ascending order.
        self._places: dict[tuple[int, ...], dict[int, list[int]]] = {}

    def read(self, text: Sequence[int]) -> None:
        """Go on to a longer text that begins as the one read so far, or back to a shorter one."""
        while len(self._text) > len(text):
            token = self._text.pop()
            for gram in self._grams(self._text):
                following = self._places[gram]
                following[token].pop()
                if not following[token]:
                    del following[token]
        for token in text[len(self._text) :]:
            for gram in self._grams(self._text):
                self._places.setdefault(gram, {}).setdefault(token, []).append(len(self._text))
            self._text.append(token)

    def matches(self, context: Sequence[int]) -> Iterator[Match]:
        """What followed the end of a context, for every length that was seen before; the longest first.

        Args:
            context: its last tokens, as many as ``longest`` or fewer.
        """
        for gram in self._grams(context):
            places = self._places.get(gram)
            if places:
                order = sorted(places, key=lambda token: (-len(places[token]), -places[token][-1]))
                yield Match(len(gram), {token: len(places[token]) for token in order})

    def _grams(self, context: Sequence[int]) -> Iterator[tuple[int, ...]]:
        for n in range(min(self.longest, len(context)), self.shortest - 1, -1):
            yield tuple(context[-n:])
