"""Documents and batches: answers laid end to end, without padding, in an order that a seed decides."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eagle.errors import InputError
from eagle.train.answers import Answer

# A drafted token is the second after the feature it is drafted from, so the first two of a document never are.
FIRST_PREDICTED = 2
# Partly filled batches that a document may still go into.
OPEN_BATCHES = 16
FEWEST_HELD_OUT = 4


@dataclass(frozen=True)
class Document:
    """A prompt and its answer.

    Attributes:
        tokens: target ids.
        start: index of the first token whose prediction is trained; at least ``FIRST_PREDICTED``.
    """

    tokens: list[int]
    start: int

    @property
    def rows(self) -> int:
        """Answer tokens whose prediction is trained."""
        return len(self.tokens) - self.start

    def rows_at(self, step: int) -> int:
        """How many of the rows have a token ``step`` further on in the document."""
        return max(0, self.rows - step)


@dataclass(frozen=True)
class Batch:
    """n tokens of some documents laid end to end. A *row* is a position that drafting starts from: the r-th row of a
    document with its first predicted token at ``start`` is position ``start - 2 + r``, whose feature and next token
    predict token ``start + r`` at step 0 and token ``start + r + k`` at step k.

    Attributes:
        tokens: (n,) int64 target ids.
        positions: (n,) int64, restarting at 0 in each document.
        rows: (R,) int64, where in the batch each row is.
        ends: (R,) int64, where in the batch the last token of each row's document is.
        lengths: tokens of each document, on the host.
        counts: rows of each document, on the host.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    ends: Tensor
    lengths: tuple[int, ...]
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            rows=self.rows.to(device),
            ends=self.ends.to(device),
        )

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Begin and end of each document in the batch."""
        bounds, begin = [], 0
        for length in self.lengths:
            bounds.append((begin, begin + length))
            begin += length
        return tuple(bounds)


def batch_of(documents: Sequence[Document]) -> Batch:
    """Lay documents end to end."""
    lengths = tuple(len(document.tokens) for document in documents)
    counts = tuple(document.rows for document in documents)
    rows: list[Tensor] = []
    ends: list[Tensor] = []
    begin = 0
    for document in documents:
        end = begin + len(document.tokens)
        rows.append(torch.arange(begin + document.start, end) - FIRST_PREDICTED)
        ends.append(torch.full((document.rows,), end - 1))
        begin = end
    return Batch(
        tokens=torch.tensor([token for document in documents for token in document.tokens]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        rows=torch.cat(rows),
        ends=torch.cat(ends),
        lengths=lengths,
        counts=counts,
    )


def documents_of(answers: Iterable[Answer], max_length: int) -> list[Document]:
    """Those answers that have anything to train on within ``max_length`` tokens, prompt included."""
    documents = (
        Document((answer.prompt + answer.answer)[:max_length], max(len(answer.prompt), FIRST_PREDICTED))
        for answer in answers
    )
    return [document for document in documents if document.rows > 0]


def split(answers: Sequence[Answer], max_length: int, share: float) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and held-out ones; all answers to a prompt are on the same side.

    Args:
        answers: what the target said.
        max_length: tokens of a document, prompt included; what is longer is cut.
        share: of the prompts that are held out; at least a few, of the smallest hashes, are.

    Raises:
        InputError: no answer has anything to train on within ``max_length``, or there are too few to hold out any.
    """
    by_prompt: dict[bytes, list[Document]] = {}
    for answer in answers:
        digest = hashlib.sha256(repr(answer.prompt).encode()).digest()
        if documents := documents_of([answer], max_length):
            by_prompt.setdefault(digest, []).extend(documents)
    if not by_prompt:
        raise InputError(
            f"none of the {len(answers)} answers has a token to predict within max_length={max_length}; "
            "raise max_length, or generate answers to shorter prompts"
        )
    digests = sorted(by_prompt)
    below = sum(int.from_bytes(digest[:8]) < share * 2**64 for digest in digests)
    held = max(below, min(FEWEST_HELD_OUT, len(digests) // 2))
    if held == 0 or held == len(digests):
        raise InputError(
            f"{len(digests)} prompts with answers cannot be split into training and held-out ones "
            f"(held_out={share}); generate more answers"
        )
    # Dictionaries keep the order of the answers, so the split does not reorder what it keeps.
    held_out = set(digests[:held])
    sides: tuple[list[Document], list[Document]] = ([], [])
    for digest, documents in by_prompt.items():
        sides[digest in held_out].extend(documents)
    return sides


def pack(documents: Sequence[Document], batch_tokens: int, source: random.Random | None) -> list[list[int]]:
    """Indices of the documents of each batch: first fit over a shuffled order.

    Args:
        documents: none longer than ``batch_tokens``.
        batch_tokens: tokens of a batch at most.
        source: decides the order; None keeps the order given.
    """
    order = list(range(len(documents)))
    if source is not None:
        source.shuffle(order)
    packed: list[list[int]] = []
    batches: list[tuple[list[int], int]] = []
    for index in order:
        length = len(documents[index].tokens)
        place = next((i for i, (_, used) in enumerate(batches) if used + length <= batch_tokens), None)
        if place is None:
            if len(batches) == OPEN_BATCHES:
                packed.append(batches.pop(0)[0])
            batches.append(([index], length))
        else:
            members, used = batches[place]
            batches[place] = ([*members, index], used + length)
    packed += [members for members, _ in batches]
    if source is not None:
        # The batches closed last are the emptiest; they must not all come at the end of an epoch.
        source.shuffle(packed)
    return packed


def plan(documents: Sequence[Document], batch_tokens: int, group: int, epochs: int, seed: int) -> list[list[list[int]]]:
    """All optimizer steps of a training, each of ``group`` batches, each of some documents, by index.

    Every epoch has another order; what is left of one after its last whole step is dropped.

    Raises:
        InputError: an epoch has less than one step.
    """
    steps: list[list[list[int]]] = []
    for epoch in range(epochs):
        source = random.Random(f"{seed}-{epoch}")  # noqa: S311  # an order, not a secret
        packed = pack(documents, batch_tokens, source)
        if len(packed) < group:
            raise InputError(
                f"all answers together make {len(packed)} batches of {batch_tokens} tokens, fewer than the {group} "
                "of one optimizer step (accumulation times processes); lower accumulation or batch_tokens"
            )
        steps += [packed[begin : begin + group] for begin in range(0, len(packed) - group + 1, group)]
    return steps
