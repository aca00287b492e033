from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eagle.text import TextStream, token_ends
from tests.tiny import make_chat_pair


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Every byte is a token, so most characters outside ASCII are several."""
    return AutoTokenizer.from_pretrained(make_chat_pair(tmp_path_factory.mktemp("bytes"))[0])


@settings(max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_pieces_make_up_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert "".join(pieces) + stream.end() == text


def test_a_character_comes_with_its_last_byte(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer)
    assert [stream.add(token) for token in tokenizer.encode("a€b", add_special_tokens=False)] == ["a", "", "", "€", "b"]


def test_bytes_that_are_no_character_do_not_hold_back_what_follows(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.encode("€", add_special_tokens=False)
    tokens = [tokens[0]] * 6 + tokenizer.encode("fine", add_special_tokens=False)
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokens]
    assert "".join(pieces) + stream.end() == tokenizer.decode(tokens)
    assert pieces[-1] == "e"


def test_special_tokens_add_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer)
    assert stream.add(tokenizer.eos_token_id) == ""
    assert stream.end() == ""


@settings(max_examples=100)
@given(st.text(st.sampled_from(" \nab€😀"), max_size=20))
def test_ends_cut_a_stripped_text_into_what_each_token_added(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    stripped = text.strip()
    ends = token_ends(tokenizer, tokens, stripped)
    assert len(ends) == len(tokens)
    assert ends == sorted(ends)
    assert ends[-1] == len(stripped)
    before = len(text) - len(text.lstrip())
    for count, end in enumerate(ends[:-1], start=1):
        seen = tokenizer.decode(tokens[:count]).rstrip("\ufffd")
        assert end == min(max(len(seen) - before, 0), len(stripped))


def test_an_empty_answer_has_no_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    assert token_ends(tokenizer, [], "") == []
