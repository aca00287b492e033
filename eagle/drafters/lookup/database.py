"""What a database of look-up answers: what followed the end of a context before."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """What followed an n-gram.

    Attributes:
        length: n.
        counts: how often each token did: the most frequent first, of those the one seen last.
        escape: how often something else is to be expected, on the scale of these counts.
    """

    length: int
    counts: dict[int, int]
    escape: float


class Database(ABC):
    """What followed what."""

    @abstractmethod
    def matches(self, context: Sequence[int]) -> Iterable[Match]:
        """What followed the end of a context, for every length that was seen before; the longest first.

        Args:
            context: its last tokens.
        """


def in_order(databases: Sequence[Database], context: Sequence[int]) -> Iterator[Match]:
    """The matches of several databases: the longest first, and of those of a length the first database's."""
    if len(databases) == 1:
        return iter(databases[0].matches(context))
    return heapq.merge(*(each.matches(context) for each in databases), key=lambda match: -match.length)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)
