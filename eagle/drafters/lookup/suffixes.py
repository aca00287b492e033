"""Texts, and where in them the end of a context stands, for matches of any length.

Source: SuffixDecoding (Oliaro et al., arXiv 2411.04975), which keeps suffix trees of the running text and of earlier
answers. Here the places behind each pair of tokens are kept, and how far a match goes back is seen when it is asked
for.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from eagle.drafters.lookup.database import common_length

SHORTEST = 2
# Newest places that a match is sought at, and tokens that it goes back at most.
LOOKED_AT, LONGEST = 64, 64
# Tokens of all texts, behind which the oldest text is dropped.
MOST_KEPT = 200_000


@dataclass(frozen=True)
class Place:
    """A place in a text that is kept.

    Attributes:
        text: the tokens.
        at: index of the token that comes next.
    """

    text: list[int]
    at: int

    def follows(self, path: Sequence[int]) -> bool:
        """Whether the text goes on with a path of tokens."""
        return self.text[self.at : self.at + len(path)] == list(path)


def following(places: Sequence[Place], path: Sequence[int]) -> Counter[int]:
    """How often each token comes behind a path at those of some places that go on with the path."""
    ends = [(place.text, place.at + len(path)) for place in places if place.follows(path)]
    return Counter(text[end] for text, end in ends if end < len(text))


class Suffixes:
    """Texts, of which the last one grows."""

    def __init__(self) -> None:
        self._texts: deque[list[int]] = deque()
        self._places: defaultdict[tuple[int, ...], deque[Place]] = defaultdict(deque)
        self._size = 0

    def begin(self, tokens: Sequence[int]) -> None:
        """Another text begins: the last one goes on, if this one begins with most of it, else it stays as it is."""
        last = self._texts[-1] if self._texts else []
        common = common_length(last, tokens)
        if self._texts and 2 * common >= len(last):
            self._shorten(common)
        else:
            self._texts.append([])
        # The one that is being written stays, however long it is.
        while self._size > MOST_KEPT and len(self._texts) > 1:
            self._drop_oldest()

    def read(self, tokens: Sequence[int]) -> None:
        """Go on to a longer text that begins as the last one, or back to a shorter one."""
        self._shorten(len(tokens))
        text = self._texts[-1]
        for token in tokens[len(text) :]:
            if len(text) >= SHORTEST:
                self._places[tuple(text[-SHORTEST:])].append(Place(text, len(text)))
            text.append(token)
            self._size += 1

    def matches(self, context: Sequence[int]) -> list[tuple[int, Place]]:
        """The newest places behind the end of a context, and how many tokens of it stand before each."""
        places = self._places.get(tuple(context[-SHORTEST:]), ())
        return [(_length(place, context), place) for place in itertools.islice(reversed(places), LOOKED_AT)]

    def _shorten(self, length: int) -> None:
        text = self._texts[-1]
        while len(text) > length:
            text.pop()
            self._size -= 1
            if len(text) >= SHORTEST:
                self._places[tuple(text[-SHORTEST:])].pop()

    def _drop_oldest(self) -> None:
        text = self._texts.popleft()
        self._size -= len(text)
        for at in range(SHORTEST, len(text)):
            gram = tuple(text[at - SHORTEST : at])
            self._places[gram].popleft()
            if not self._places[gram]:
                del self._places[gram]


def _length(place: Place, context: Sequence[int]) -> int:
    most = min(LONGEST, len(context), place.at)
    return next((n for n in range(SHORTEST, most) if place.text[place.at - 1 - n] != context[-1 - n]), most)
