"""Hierarchy Drafting's own file of the database S: n-grams of a model's answers, and how many answers hold each.

``{"id/id/id/id/id": count, ...}`` in JSON. It names no tokenizer, so of that only its ids can be checked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eagle.drafters.lookup.database import Database, Match
from eagle.drafters.lookup.prediction import escape
from eagle.errors import InputError


class History(Database):
    """Counted n-grams.

    Args:
        grams: token ids, and how often they were seen in a row.
        escapes: of matches of 1, 2, ... tokens.
        longest: match, in tokens.
        sha256: of the file.
    """

    def __init__(
        self, grams: Mapping[tuple[int, ...], int], escapes: Sequence[float], longest: int, sha256: str = ""
    ) -> None:
        self.sha256, self._escapes, self._longest = sha256, escapes, longest
        self._following: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for gram, count in grams.items():
            self.add(gram, count)

    def add(self, gram: tuple[int, ...], count: int = 1) -> None:
        """An n-gram was seen, so often."""
        for end in range(1, len(gram)):
            for start in range(max(0, end - self._longest), end):
                self._following[gram[start:end]][gram[end]] += count

    def matches(self, context: Sequence[int]) -> Iterator[Match]:
        """See ``Database.matches``."""
        for length in range(min(self._longest, len(context)), 0, -1):
            counts = self._following.get(tuple(context[-length:]))
            if counts:
                yield Match(length, dict(counts.most_common()), escape(self._escapes, length))


def read_history(file: Path, vocabulary: int, escapes: Sequence[float], longest: int) -> History:
    """Read such a file.

    Args:
        file: JSON.
        vocabulary: tokens that the model has.
        escapes: see ``History``.
        longest: match, in tokens.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = file.read_bytes()
        read = json.loads(content)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the history file {file}: {error}") from error
    if not isinstance(read, dict) or not read:
        raise InputError(f'{file} is no history file: it must hold {{"id/id/...": count}}')
    grams: dict[tuple[int, ...], int] = {}
    for key, count in read.items():
        ids = key.split("/")
        if not all(map(str.isdecimal, ids)) or len(ids) < 2 or type(count) is not int or count < 1:
            raise InputError(f'{file} is no history file: {key!r}: {count!r} is not "id/id/...": count')
        grams[tuple(map(int, ids))] = count
    largest = max(max(gram) for gram in grams)
    if largest >= vocabulary:
        raise InputError(f"{file} was made for another tokenizer: token {largest}, where this model has {vocabulary}")
    return History(grams, escapes, longest, hashlib.sha256(content).hexdigest())
