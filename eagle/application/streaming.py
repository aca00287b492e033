"""An answer as it is decoded: pieces of text, where in the draft tree each came from, and how fast they come."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from eagle.clock import Clock
from eagle.decoding.decoding import Decoding
from eagle.text import TextStream

OWN = 0
"""Depth of a token that the target drew itself."""


@dataclass(frozen=True)
class Piece:
    """The text that one token added.

    Attributes:
        text: not empty.
        depth: level of the draft tree at which the token was accepted, 1 is right below the root; ``OWN``: not drafted.
    """

    text: str
    depth: int


@dataclass(frozen=True)
class Statistics:
    """How far a generation is.

    Attributes:
        new_tokens: tokens emitted.
        rounds: forwards of the target after the prefill.
        accepted: draft tokens among the new ones.
        seconds: spent on it, prefill included.
    """

    new_tokens: int = 0
    rounds: int = 0
    accepted: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, prefill included; 0 before the first."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def tau(self) -> float | None:
        """Accepted tokens a round and the target's own; None before the first round."""
        return 1 + self.accepted / self.rounds if self.rounds else None

    def __str__(self) -> str:
        shown = f"{self.new_tokens} token{'s' if self.new_tokens != 1 else ''} · {self.tokens_per_second:.1f} tokens/s"
        return shown if self.tau is None else f"{shown} · tau {self.tau:.2f}"


@dataclass(frozen=True)
class Update:
    """What one round added.

    Attributes:
        pieces: new text; the prefill's for the first update.
        statistics: of the generation so far.
        finished: whether it was the last.
    """

    pieces: tuple[Piece, ...]
    statistics: Statistics
    finished: bool


def stream(
    rounds: Generator[Decoding, None, None], tokenizer: PreTrainedTokenizerBase, clock: Clock | None = None
) -> Generator[Update, None, None]:
    """Watch a generation.

    Only what happens within it is timed, not what is done between the updates. Closing the stream ends the generation.

    Args:
        rounds: of ``EaModel.rounds``.
        tokenizer: of its tokens.
        clock: of the device that it runs on; by default the CPU's.

    Yields:
        An update after the prefill and after each round.
    """
    text = TextStream(tokenizer)
    clock = clock or Clock(torch.device("cpu"))
    seconds, seen = 0.0, 0
    with contextlib.closing(rounds):
        while True:
            clock.lap()
            decoding = next(rounds, None)
            if decoding is None:
                return
            fresh = decoding.tokens[decoding.prompt_length + seen :]
            pieces = _pieces(text, fresh, decoding)
            seen += len(fresh)
            seconds += clock.lap()
            lengths = decoding.info["accept_length"]
            statistics = Statistics(seen, len(lengths), sum(lengths), seconds)
            yield Update(pieces, statistics, decoding.finished)


def _pieces(text: TextStream, fresh: list[int], decoding: Decoding) -> tuple[Piece, ...]:
    """The pieces of one round's tokens: first the accepted ones, along their path, then the target's own."""
    lengths = decoding.info["accept_length"]
    accepted = lengths[-1] if lengths else 0
    depths = [place if place <= accepted else OWN for place in range(1, len(fresh) + 1)]
    pieces = [Piece(text.add(token), depth) for token, depth in zip(fresh, depths, strict=True)]
    if decoding.finished:
        pieces.append(Piece(text.end(), depths[-1]))
    return tuple(piece for piece in pieces if piece.text)


def race(
    streams: Sequence[Generator[Update, None, None]], stopped: threading.Event
) -> Generator[tuple[int, Update], None, None]:
    """Generations side by side: whichever has had the least time does its next round, so the faster one is ahead.

    Args:
        streams: of ``stream``.
        stopped: ends all of them when it is set.

    Yields:
        Which stream, and its update.
    """
    with contextlib.ExitStack() as closing:
        for updates in streams:
            closing.enter_context(contextlib.closing(updates))
        seconds = dict.fromkeys(range(len(streams)), 0.0)
        while seconds and not stopped.is_set():
            lane = min(seconds, key=seconds.__getitem__)
            update = next(streams[lane], None)
            if update is None:
                del seconds[lane]
            else:
                seconds[lane] = update.statistics.seconds
                yield lane, update
