"""Databases of look-up in files: what is found in them, and files that do not fit."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from eagle.drafters.lookup import corpus
from eagle.drafters.lookup.corpus import Corpus, open_corpus, write_corpus
from eagle.drafters.lookup.database import Match, in_order
from eagle.drafters.lookup.ngrams import NGrams
from eagle.drafters.vocabulary import vocabulary_sha256
from eagle.errors import InputError
from eagle.target.base import load_tokenizer
from tests.tiny import write_letters

ESCAPES = (3.0, 2.0, 1.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("letters")
    write_letters(folder)
    return load_tokenizer(str(folder))


def of(tokenizer: PreTrainedTokenizerBase) -> str:
    return vocabulary_sha256(tokenizer.get_vocab())


def by_reading(texts: list[list[int]], context: list[int], longest: int) -> dict[int, Counter[int]]:
    """What followed the last n tokens of a context, for every n, found by going through all of the texts."""
    found: dict[int, Counter[int]] = {}
    for n in range(1, min(longest, len(context)) + 1):
        gram = context[-n:]
        for text in texts:
            for place in range(n, len(text)):
                if text[place - n : place] == gram:
                    found.setdefault(n, Counter())[text[place]] += 1
    return found


@pytest.mark.parametrize("longest", [1, 5, 40])
def test_what_is_found_is_what_is_there(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    source = random.Random(longest)  # noqa: S311
    texts = [[source.randrange(4) for _ in range(source.randrange(1, 30))] for _ in range(6)]
    texts.append([1, 2, 3, 1, 2, 0] * 6)
    file = tmp_path / "db"
    assert write_corpus(file, texts, tokenizer) == sum(map(len, texts)) + len(texts) + 1
    opened = open_corpus(file, of(tokenizer), ESCAPES, longest)
    for _ in range(60):
        text = source.choice(texts)
        end = source.randrange(len(text) + 1)
        context = text[max(0, end - 20) : end] + [source.randrange(4)] * source.randrange(2)
        matches = list(opened.matches(context))
        expected = by_reading(texts, context, min(longest, corpus.DEPTH))
        assert [match.length for match in matches] == sorted(expected, reverse=True)
        for match in matches:
            assert match.counts == expected[match.length]
            assert list(match.counts.values()) == sorted(match.counts.values(), reverse=True)
            assert match.escape == ESCAPES[min(match.length, 3) - 1]


def test_of_many_places_an_even_share_is_looked_at(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [[1, 2]] * 300 + [[1, 3]] * 100
    write_corpus(tmp_path / "db", texts, tokenizer)
    (match,) = open_corpus(tmp_path / "db", of(tokenizer), ESCAPES).matches([1])
    assert sum(match.counts.values()) <= corpus.LOOKED_AT
    assert 0.6 < match.counts[2] / sum(match.counts.values()) < 0.9


def test_the_first_database_speaks_first_at_each_length() -> None:
    first, second = NGrams(1, 4), NGrams(1, 4)
    first.read([1, 2, 3])
    second.read([0, 1, 2, 4, 1, 2])
    found = [(match.length, match.counts) for match in in_order([first, second], [0, 1, 2])]
    assert found == [(3, {4: 1}), (2, {3: 1}), (2, {4: 1}), (1, {3: 1}), (1, {4: 1})]
    assert isinstance(next(iter(in_order([second], [2]))), Match)


def test_tokens_take_the_smallest_width(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_corpus(tmp_path / "db", [[1, 2, 3]], tokenizer)
    stored = load_file(tmp_path / "db")
    assert {name: array.dtype for name, array in stored.items()} == {"tokens": np.uint16, "order": np.uint32}


def test_files_that_do_not_fit_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = tmp_path / "db"
    with pytest.raises(InputError, match=r"there is no database of look-up .*eagle\.lookup build makes one"):
        open_corpus(file, of(tokenizer), ESCAPES)
    write_corpus(file, [[1, 2, 3] * 50], tokenizer)
    whole = file.read_bytes()
    for size in (0, 5, 200, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match="cut short, or of another kind"):
            open_corpus(file, of(tokenizer), ESCAPES)
    file.write_bytes(whole)
    arrays = load_file(file)
    save_file(arrays, file, metadata={"format": "eagle-lookup", "version": "9"})
    with pytest.raises(InputError, match="is of version 9, this program's is 1"):
        open_corpus(file, of(tokenizer), ESCAPES)
    save_file(arrays, file)
    with pytest.raises(InputError, match="is not a database of look-up"):
        open_corpus(file, of(tokenizer), ESCAPES)
    file.write_bytes(whole)
    other = load_tokenizer(str(Path(tokenizer.name_or_path)))
    other.add_tokens(["another"])
    with pytest.raises(InputError, match="was made for another tokenizer"):
        open_corpus(file, of(other), ESCAPES)
    assert isinstance(open_corpus(file, of(tokenizer), ESCAPES), Corpus)


def test_without_text_there_is_no_database(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for texts in ([], [[]]):
        with pytest.raises(InputError, match="there is no text"):
            write_corpus(tmp_path / "db", texts, tokenizer)
    assert not (tmp_path / "db").exists()
