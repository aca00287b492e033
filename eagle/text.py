"""The text of tokens as they come, and which token every piece of it came with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

# Shown in place of bytes that are no character, or not one yet.
INCOMPLETE = "\ufffd"
# A character has at most so many bytes: what is still incomplete after so many tokens never gets complete.
LONGEST_CHARACTER = 4


def whole_characters(text: str) -> str:
    """Text that can be written down: halves of characters are joined, and a lone one is replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@cache
def _byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in the tokens of byte-level tokenizers, as GPT-2's has them: printable ones for
    themselves, the others in their order from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """The bytes of a token, which may be a part of a character; None where they cannot be told."""
    text = str(tokenizer.decode([token]))
    if INCOMPLETE not in text:
        return text.encode()
    name = str(tokenizer.convert_ids_to_tokens(token))
    if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return bytes.fromhex(found[1])
    letters = _byte_letters()
    return bytes(letters[letter] for letter in name) if set(name) <= set(letters) else None


class TextStream:
    """Decodes a growing sequence of tokens, in time linear in their number.

    What a token looks like depends on its neighbours, so it is decoded together with the tokens before it. A token that
    ends within a character adds nothing; the one that completes the character adds all of it.

    Args:
        tokenizer: of the tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Tokens whose text is out, kept as the next ones' context, and those whose text is not.
        self._shown: list[int] = []
        self._waiting: list[int] = []

    def add(self, token: int) -> str:
        """The text that one more token adds; special tokens have none."""
        self._waiting.append(token)
        text = self._decode(self._shown + self._waiting)
        if text.endswith(INCOMPLETE) and len(self._waiting) < LONGEST_CHARACTER:
            return ""
        return self._show(text)

    def end(self) -> str:
        """The text of what is still incomplete."""
        return self._show(self._decode(self._shown + self._waiting))

    def _show(self, text: str) -> str:
        added = text[len(self._decode(self._shown)) :]
        self._shown, self._waiting = self._waiting or self._shown, []
        return added

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class StopStrings:
    """Finds out with which token a text comes to hold one of some strings.

    Args:
        tokenizer: of the tokens.
        strings: at least one, none of them empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        # So much of the text before a token may be the beginning of a string that ends with it.
        self._longest = max(map(len, self._strings)) - 1
        self._stream, self._before = TextStream(tokenizer), ""

    def __call__(self, token: int) -> bool:
        """Whether the text holds one of the strings with one more token."""
        seen = self._before + self._stream.add(token)
        self._before = seen[max(0, len(seen) - self._longest) :]
        return any(string in seen for string in self._strings)


class StopFilter:
    """Shows a growing text up to the first of some strings in it, and never the beginning of one that may follow.

    Args:
        strings: any number, none of them empty.

    Attributes:
        stopped: whether one has come; nothing is shown from then on.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings, self._held, self.stopped = tuple(strings), "", False

    def add(self, text: str) -> str:
        """What may be shown, given more text."""
        if self.stopped:
            return ""
        self._held += text
        before = before_stop(self._held, self._strings)
        if len(before) < len(self._held):
            self.stopped, self._held = True, ""
            return before
        keep = max((_begun(self._held, string) for string in self._strings), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def end(self) -> str:
        """What is still to be shown of a text that has ended."""
        shown, self._held = self._held, ""
        return shown


def _begun(text: str, string: str) -> int:
    """Characters at the end of a text that a string begins with."""
    most = min(len(text), len(string) - 1)
    return next((count for count in range(most, 0, -1) if text.endswith(string[:count])), 0)


def before_stop(text: str, strings: Sequence[str]) -> str:
    """A text up to the first of some strings in it; all of it where there is none."""
    places = [place for string in strings if (place := text.find(string)) >= 0]
    return text[: min(places)] if places else text


def token_ends(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], text: str) -> list[int]:
    """Where in a text the characters that each of its tokens added end.

    Args:
        tokenizer: of the tokens.
        tokens: n ids.
        text: their text, with or without the space around it.

    Returns:
        n character indices, ascending; the last is the text's length.
    """
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokens]
    whole = "".join(pieces) + stream.end()
    cut = max(0, whole.find(text[:1])) if text else 0
    ends = [min(max(end - cut, 0), len(text)) for end in accumulate(map(len, pieces))]
    return [*ends[:-1], len(text)] if ends else []
