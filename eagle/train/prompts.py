"""Prompts to be answered, without what a benchmark asks."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator

from eagle import assets
from eagle.data.conversations import Conversation, Message, read_conversations
from eagle.data.questions import load_questions
from eagle.errors import InputError

GRAM = 13
WORD = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """The words of a text without case and punctuation."""
    return tuple(WORD.findall(text.casefold()))


class Excluded:
    """Texts that prompts must not contain.

    A prompt contains one if they share 13 consecutive words, or, shorter than that itself, if it is one.

    Args:
        texts: any number.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        split = [words(text) for text in texts]
        self._grams = {gram for text in split for gram in _grams(text)}
        self._short = {text for text in split if len(text) < GRAM}

    def __contains__(self, text: str) -> bool:
        split = words(text)
        return split in self._short if len(split) < GRAM else not self._grams.isdisjoint(_grams(split))


def _grams(split: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (split[start : start + GRAM] for start in range(len(split) - GRAM + 1))


def benchmark_texts(exclude: Iterable[str]) -> Iterator[str]:
    """All turns of MT-Bench and of further sources, which are read like prompts.

    Raises:
        InputError: as ``read_conversations``, or MT-Bench could not be fetched.
    """
    for question in load_questions(assets.mt_bench_questions()):
        yield from question.turns
    for source in exclude:
        for conversation in read_conversations(source):
            yield from conversation.turns


def select_prompts(conversations: Iterable[Conversation], excluded: Excluded, seed: int) -> list[list[Message]]:
    """Prompts in an order that the seed decides, each once, without those that overlap with a benchmark.

    Says on standard error how many were left out.

    Args:
        conversations: to take the prompts of.
        excluded: what they must not contain.
        seed: of the order.

    Raises:
        InputError: none is left.
    """
    all_prompts = [conversation.prompt() for conversation in conversations]
    unique = list({json.dumps(prompt): prompt for prompt in all_prompts}.values())
    kept = [prompt for prompt in unique if not any(message["content"] in excluded for message in prompt)]
    assets.say(
        f"prompts: {len(kept):,} left of {len(all_prompts):,}; {len(all_prompts) - len(unique):,} occurred before, "
        f"{len(unique) - len(kept):,} overlap with benchmark questions ({GRAM} words)"
    )
    if not kept:
        raise InputError("no prompts are left: all of them overlap with benchmark questions")
    random.Random(seed).shuffle(kept)  # noqa: S311  # a reproducible order, not a secret
    return kept
