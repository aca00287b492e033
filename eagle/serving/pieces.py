"""The pieces of texts on their way from the engine's thread to a client: all at once, or as they come."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from eagle.errors import InputError, PromptError
from eagle.serving.engine import ClosingError, Engine, Piece, Usage, Work
from eagle.serving.metrics import Metrics
from eagle.serving.replies import CLOSING, SERVER, Gathered, Reply, error_body, usage_body

# Seconds between two looks at whether a client that gets everything at once is still there.
LOOKING = 0.5
# For so long at most the engine waits until its first piece is sent. Both threads take turns at Python, so with the
# next round begun it would be sent later by more than it takes.
SENDING = 0.005
log = logging.getLogger(__name__)


class Pieces:
    """The pieces of texts as they come; whoever stops asking gives up the rest.

    Args:
        engine: writes them.
        work: the texts.
        metrics: of them.
        request: of the client.
        began: when it came, on the monotonic clock.

    Raises:
        BusyError: the queue is full.
        ClosingError: nothing is begun any more.
    """

    def __init__(self, engine: Engine, work: Work, metrics: Metrics, request: Request, began: float) -> None:
        self._engine, self._metrics, self._request = engine, metrics, request
        self._began, self._none_yet = began, True
        self._inbox: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self._loop, self._sent = asyncio.get_running_loop(), threading.Event()
        self._ticket = engine.submit(work, self._tell)

    def _tell(self, each: Piece | Exception | None) -> None:
        """Called by the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, each)
            if isinstance(each, Piece) and not self._sent.wait(SENDING):
                self._sent.set()

    def sent(self) -> None:
        """The first piece is on its way, or waits for others."""
        self._sent.set()

    def give_up(self) -> None:
        """No more are wanted."""
        self._sent.set()
        self._engine.give_up(self._ticket)

    async def next(self) -> Piece | None:
        """The next piece; None: there is none.

        Raises:
            Exception: why there is no more.
        """
        each = await self._inbox.get()
        if isinstance(each, Exception):
            raise each
        if each is None:
            self._metrics.whole.observe(time.monotonic() - self._began)
            return None
        if self._none_yet:
            self._metrics.first.observe(time.monotonic() - self._began)
            self._none_yet = False
        if each.finish is not None:
            self._metrics.ended(each)
        return each

    async def next_or_gone(self) -> Piece | None:
        """The next piece; None where there is none or the client has gone, so that nothing more is written for it.

        Raises:
            Exception: see ``next``.
        """
        try:
            while True:
                try:
                    async with asyncio.timeout(LOOKING) as looking:
                        return await self.next()
                except TimeoutError:
                    # Else it is why there is no more.
                    if not looking.expired():
                        raise
                    if await self._request.is_disconnected():
                        self.give_up()
                        return None
        except BaseException:
            self.give_up()
            raise


async def whole(reply: Reply, first: Piece, pieces: Pieces, tokens: int, count: int) -> Response:
    """All pieces of ``count`` texts together, given the first and the number of tokens of their prompts."""
    pieces.sent()
    texts, usage = [Gathered() for _ in range(count)], Usage()
    piece: Piece | None = first
    try:
        while piece is not None:
            text = texts[piece.index]
            text.text += piece.text
            text.logprobs += piece.logprobs
            text.finish, usage = piece.finish, usage + piece.usage
            piece = await pieces.next_or_gone()
    except Exception:
        log.exception("a text could not be finished")
        return JSONResponse(error_body("the text could not be finished; the server's log says why", SERVER), 500)
    if any(text.finish is None for text in texts):
        return Response(status_code=499)
    return JSONResponse(reply.whole(texts, usage_body(tokens, usage)))


class Stream(Response):
    """Server-sent events: a piece each, at last the usage where it was asked for.

    Args:
        reply: makes them.
        first: piece.
        pieces: the others. When the client goes they are given up.
        tokens: of the prompts, for the usage; None: it was not asked for.
    """

    def __init__(self, reply: Reply, first: Piece, pieces: Pieces, tokens: int | None) -> None:
        self.status_code, self.media_type, self.background = 200, "text/event-stream", None
        self.init_headers({"Cache-Control": "no-cache"})
        self._pieces, self._events = pieces, _events(reply, first, pieces, tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the first piece before anything else is done, the others while the client is there."""
        gone: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                if gone is None:
                    gone = asyncio.create_task(_until_gone(receive, self._pieces))
                elif gone.done():
                    return
                await send({"type": "http.response.body", "body": event, "more_body": True})
                self._pieces.sent()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if gone is not None:
                gone.cancel()
            self._pieces.give_up()


async def _until_gone(receive: Receive, pieces: Pieces) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    pieces.give_up()


async def _events(reply: Reply, first: Piece, pieces: Pieces, tokens: int | None) -> AsyncIterator[bytes]:
    usage = Usage()
    piece: Piece | None = first
    try:
        while piece is not None:
            usage = usage + piece.usage
            yield _event(reply.chunk(piece))
            piece = await pieces.next()
        if tokens is not None:
            yield _event(reply.usage_chunk(usage_body(tokens, usage)))
        yield b"data: [DONE]\n\n"
    except (InputError, PromptError, ClosingError) as error:
        yield _event(error_body(str(error) or CLOSING, SERVER))
    except Exception:
        log.exception("a text could not be finished")
        yield _event(error_body("the text could not be finished; the server's log says why", SERVER))


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
