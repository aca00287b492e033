"""One model that writes one text at a time, and a bounded, fair queue in front of it."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eagle.decoding.decoding import Decoding
from eagle.decoding.logprobs import Logprob, Logprobs
from eagle.decoding.method import Method
from eagle.decoding.sampling_params import SamplingParams
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.text import StopFilter, TextStream

STOP, LENGTH = "stop", "length"
# Of the seconds that requests have taken lately, for how long a client that is sent away should wait.
REMEMBERED = 32

log = logging.getLogger(__name__)


class BusyError(Exception):
    """The queue is full.

    Attributes:
        seconds: after which there may be room.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} seconds")
        self.seconds = seconds


class ClosingError(Exception):
    """No more is begun: the server ends."""


@dataclass(frozen=True, eq=False)
class Work:
    """Texts that a client wants.

    Attributes:
        client: who, for the queue to be fair.
        prompts: (1, n) int64 each.
        choices: texts to each.
        params: how they are written, but for their source of randomness.
        drafting: None is autoregressive decoding.
        seed: of the first text, the next ones' follow; None: another one each time.
    """

    client: str
    prompts: tuple[Tensor, ...]
    choices: int
    params: SamplingParams
    drafting: Method | None
    seed: int | None = None


@dataclass(frozen=True)
class Usage:
    """What texts have taken.

    Attributes:
        new_tokens: of them.
        accepted: among these, drafted ones.
        drafted: tokens on the longest paths of all drafts: so many could have been accepted.
        rounds: forwards of the target.
        remembered: tokens of prompts that were not read again.
    """

    new_tokens: int = 0
    accepted: int = 0
    drafted: int = 0
    rounds: int = 0
    remembered: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.new_tokens + other.new_tokens,
            self.accepted + other.accepted,
            self.drafted + other.drafted,
            self.rounds + other.rounds,
            self.remembered + other.remembered,
        )


@dataclass(frozen=True)
class Piece:
    """What a round has added to a text.

    Attributes:
        index: of the text.
        text: that may be shown.
        logprobs: of its new tokens, where they were asked for.
        finish: why the text has ended, ``stop`` or ``length``; None: it goes on.
        usage: of the whole text, with its last piece.
        seconds: of the stages of its rounds, with its last piece.
    """

    index: int
    text: str
    logprobs: tuple[Logprob, ...] = ()
    finish: str | None = None
    usage: Usage = Usage()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Ticket:
    """Work in the queue, or at work.

    Attributes:
        work: it.
        tell: is given its pieces, from the model's thread; at last None, or why there is no more.
        given_up: set when nobody waits for it any more.
    """

    work: Work
    tell: Callable[[Piece | Exception | None], None]
    given_up: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Writes texts with one model, in a thread of its own.

    Args:
        model: it.
        waiting: requests that may wait, beside the one that is being answered.
    """

    def __init__(self, model: EaModel, waiting: int) -> None:
        self.model, self.waiting = model, waiting
        self.tokenizer = model.get_tokenizer()
        self._clients: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._running: Ticket | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        with self._changed:
            return sum(map(len, self._clients.values()))

    @property
    def busy(self) -> bool:
        """Whether a text is being written."""
        return self._running is not None

    def submit(self, work: Work, tell: Callable[[Piece | Exception | None], None]) -> Ticket:
        """Have texts written when it is their turn: clients that wait are served in turn, each in its own order.

        Raises:
            BusyError: too many wait already.
            ClosingError: see there.
        """
        ticket = Ticket(work, tell)
        with self._changed:
            if self._closing:
                raise ClosingError
            queued = sum(map(len, self._clients.values()))
            if queued + (self._running is not None) > self.waiting:
                usual = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
                raise BusyError(max(1, round(usual)))
            self._clients.setdefault(work.client, deque()).append(ticket)
            self._changed.notify_all()
        return ticket

    def give_up(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: it leaves the queue, or ends with the round that it is in."""
        ticket.given_up.set()
        with self._changed:
            waiting = self._clients.get(ticket.work.client)
            if waiting is not None and ticket in waiting:
                waiting.remove(ticket)
                if not waiting:
                    del self._clients[ticket.work.client]

    def close(self) -> None:
        """Finish what is being written, and refuse what waits and what comes."""
        with self._changed:
            self._closing = True
            refused = [ticket for tickets in self._clients.values() for ticket in tickets]
            self._clients.clear()
            self._changed.notify_all()
        for ticket in refused:
            ticket.tell(ClosingError())

    def join(self) -> None:
        """Wait until nothing is being written any more, after ``close``."""
        self._thread.join()

    def _next(self) -> Ticket | None:
        with self._changed:
            self._running = None
            while not self._clients:
                if self._closing:
                    return None
                self._changed.wait()
            client, tickets = self._clients.popitem(last=False)
            self._running = tickets.popleft()
            if tickets:
                self._clients[client] = tickets
            return self._running

    def _serve(self) -> None:
        while (ticket := self._next()) is not None:
            began = time.monotonic()
            try:
                for piece in self._write(ticket):
                    ticket.tell(piece)
                ticket.tell(None)
            except InputError as error:
                ticket.tell(error)
            except Exception as error:
                # Whatever it was, the next one is answered.
                log.exception("a text could not be written")
                ticket.tell(error)
            self._seconds.append(time.monotonic() - began)

    def _write(self, ticket: Ticket) -> Iterator[Piece]:
        work = ticket.work
        for index in range(len(work.prompts) * work.choices):
            generator = torch.Generator()
            if work.seed is None:
                generator.seed()
            else:
                generator.manual_seed((work.seed + index) % 2**63)
            prompt = work.prompts[index // work.choices].to(self.model.device)
            rounds = self.model.rounds(work.drafting, prompt, replace(work.params, generator=generator))
            yield from self._pieces(index, rounds, ticket)
            if ticket.given_up.is_set():
                return

    def _pieces(self, index: int, rounds: Generator[Decoding], ticket: Ticket) -> Iterator[Piece]:
        work, text, seen = ticket.work, TextStream(self.tokenizer), 0
        shown = StopFilter(work.params.stop)
        with closing(rounds):
            for decoding in rounds:
                fresh = decoding.tokens[decoding.prompt_length + seen :]
                logprobs = tuple(decoding.watch.found[seen:]) if isinstance(decoding.watch, Logprobs) else ()
                seen += len(fresh)
                piece = shown.add("".join(map(text.add, fresh)))
                if not decoding.finished:
                    if piece or logprobs:
                        yield Piece(index, piece, logprobs)
                    if ticket.given_up.is_set():
                        return
                    continue
                piece += shown.add(text.end()) + shown.end()
                by_itself = shown.stopped or fresh[-1] in decoding.text.stop_ids
                info = decoding.info
                lengths = info["accept_length"]
                drafted = sum(info["draft_length"]) - len(lengths)
                # A prompt is one, however many texts begin with it.
                remembered = 0 if index % work.choices else decoding.remembered
                usage = Usage(seen, sum(lengths), drafted, len(lengths), remembered)
                seconds = {"prefill": info["reset_tree_time"], "target": sum(info["tree_time"])}
                seconds |= {"verification": sum(info["eval_time"]), "commit_and_draft": sum(info["update_time"])}
                yield Piece(index, piece, logprobs, STOP if by_itself else LENGTH, usage, seconds)
