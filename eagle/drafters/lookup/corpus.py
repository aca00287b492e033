"""Many texts in a file, sorted by what stands in front of each of their tokens, to find a context by bisection.

The databases S (answers of the target itself) and L (any text) of Hierarchy Drafting (arXiv 2502.05609) are such files;
REST (arXiv 2311.08252) searches a suffix array in the same way. Here *prefixes* are sorted, backwards from the token
that follows: the places that follow the same last n tokens lie side by side for every n, each within those of n - 1.

A file is safetensors: ``tokens``, the texts with ``END`` in front of each and behind the last, in the smallest width;
``order``, the places of tokens, sorted; and in its header what it was made for. It is memory-mapped: what is not looked
at is not read.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydivsufsort import divsufsort
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from eagle.drafters.lookup.database import Database, Match
from eagle.drafters.lookup.prediction import escape
from eagle.drafters.vocabulary import vocabulary_sha256
from eagle.errors import InputError

FORMAT, VERSION = "eagle-lookup", "1"
# Doubled from 1: longer contexts are not told apart.
DEPTH = 16
# Of the places that follow a context so many are looked at, spread evenly over them.
LOOKED_AT = 64
MOST_TOKENS = 2**32 - 1
# Of n-grams that were asked for, where they are and what follows them.
REMEMBERED = 2**16


class Corpus(Database):
    """A file of texts.

    Args:
        tokens: (n,) with ``end`` between texts.
        order: (n - 1,) places of tokens, sorted by the tokens in front of them.
        end: what stands between texts, no token.
        escapes: of matches of 1, 2, ... tokens.
        longest: match, in tokens.
        sha256: of the tokens.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        order: NDArray[Any],
        end: int,
        escapes: Sequence[float],
        longest: int = DEPTH,
        sha256: str = "",
    ) -> None:
        self.sha256 = sha256
        self._tokens, self._order, self._end = memoryview(tokens.data), memoryview(order.data), end
        self._escapes, self.longest = escapes, min(longest, DEPTH)
        # The ends of a text's paths are asked for again and again, in the same round and in later ones.
        self._known: dict[tuple[int, ...], tuple[int, int]] = {(): (0, len(self._order))}
        self._match = lru_cache(REMEMBERED)(self._match_between)

    def __len__(self) -> int:
        return len(self._tokens)

    def matches(self, context: Sequence[int]) -> Iterator[Match]:
        """See ``Database.matches``."""
        found: list[tuple[int, int]] = []
        for length in range(1, min(self.longest, len(context)) + 1):
            low, high = self._between(tuple(context[-length:]))
            if low == high:
                break
            found.append((low, high))
        for length in range(len(found), 0, -1):
            match = self._match(length, *found[length - 1])
            if match.counts:
                yield match

    def _between(self, gram: tuple[int, ...]) -> tuple[int, int]:
        """Where in the order the places are that follow an n-gram, whose last n - 1 tokens have been asked for."""
        found = self._known.get(gram)
        if found is None:
            tokens, order, back = self._tokens, self._order, len(gram)
            low, high = self._known.get(gram[1:]) or self._between(gram[1:])

            def before(place: int) -> int:
                return int(tokens[place - back])

            low = bisect_left(order, gram[0], low, high, key=before)
            high = bisect_right(order, gram[0], low, high, key=before)
            if len(self._known) > REMEMBERED:
                self._known = {(): (0, len(order))}
            found = self._known[gram] = low, high
        return found

    def _match_between(self, length: int, low: int, high: int) -> Match:
        """What follows places in the order."""
        tokens, order = self._tokens, self._order
        counts = Counter(tokens[order[place]] for place in range(low, high, -(-(high - low) // LOOKED_AT)))
        counts.pop(self._end, None)
        return Match(length, dict(counts.most_common()), escape(self._escapes, length))


def open_corpus(file: Path, vocabulary: str, escapes: Sequence[float], longest: int = DEPTH) -> Corpus:
    """Map a file into memory.

    Args:
        file: of ``write_corpus``.
        vocabulary: ``vocabulary_sha256`` of the target's, which has to be the one that the file was made for.
        escapes: see ``Corpus``.
        longest: match, in tokens.

    Raises:
        InputError: no such file, cut short, of another kind or version, or of another tokenizer.
    """
    build = "python -m eagle.lookup build makes one"
    if file.suffix == ".idx":
        raise InputError(f"{file} is an index of REST's own format, which is not read; of the same texts {build}")
    try:
        with safe_open(str(file), framework="pt") as opened:
            header = opened.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{file} is not a database of look-up; {build}")
            if header.get("version") != VERSION:
                raise InputError(f"{file} is of version {header.get('version')}, this program's is {VERSION}; {build}")
            tokens, order = (opened.get_tensor(name).numpy() for name in ("tokens", "order"))
    except (OSError, SafetensorError) as error:
        if not file.is_file():
            raise InputError(f"there is no database of look-up {file}; {build}") from error
        raise InputError(
            f"{file} cannot be read as a database of look-up ({error}): cut short, or of another kind; {build}"
        ) from error
    if header["tokenizer"] != vocabulary:
        raise InputError(f"{file} was made for another tokenizer than this model's; build one with this model: {build}")
    return Corpus(tokens, order, int(header["end"]), escapes, longest, header["sha256"])


def write_corpus(file: Path, texts: Iterable[Sequence[int] | NDArray[Any]], tokenizer: PreTrainedTokenizerBase) -> int:
    """Sort texts into a file; returns its tokens.

    Args:
        file: to be written, whole or not at all.
        texts: token ids of each.
        tokenizer: that they are of.

    Raises:
        InputError: no text, too many tokens for a file, or it cannot be written.
    """
    end = len(tokenizer)
    width = np.uint16 if end < 2**16 else np.uint32
    pieces = [piece for text in texts for piece in (np.array([end], width), np.asarray(text, width))]
    tokens: NDArray[Any] = np.concatenate([*pieces, np.array([end], width)])
    if len(tokens) <= 2:
        raise InputError(f"{file}: there is no text to make a database of")
    if len(tokens) > MOST_TOKENS:
        raise InputError(f"{file}: {len(tokens):,} tokens are more than one file can hold ({MOST_TOKENS:,})")
    header = {"format": FORMAT, "version": VERSION, "end": str(end), "sha256": hashlib.sha256(tokens.data).hexdigest()}
    header["tokenizer"] = vocabulary_sha256(tokenizer.get_vocab())
    temporary = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": tokens, "order": sorted_by_what_precedes(tokens)}, temporary, metadata=header)
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {file}: {error}") from error
    return len(tokens)


def sorted_by_what_precedes(tokens: NDArray[Any]) -> NDArray[np.uint32]:
    """Places 1 to n - 1 of tokens, sorted by the tokens in front of each, the nearest first."""
    # Read backwards, what is in front of a place is a suffix; the longest is that of the place behind all of them.
    suffixes = divsufsort(np.ascontiguousarray(tokens[::-1]))
    return (len(tokens) - suffixes[suffixes > 0]).astype(np.uint32)
