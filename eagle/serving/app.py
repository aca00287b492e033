"""The server's routes: OpenAI's interface over HTTP, health, and what is counted."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from torch import Tensor

from eagle.chat_template import TemplateArguments, chat_ids
from eagle.decoding.method import Method
from eagle.errors import InputError, PromptError
from eagle.serving.engine import BusyError, ClosingError, Engine, Piece, Usage, Work
from eagle.serving.metrics import Metrics
from eagle.serving.replies import (
    CHAT,
    INVALID,
    KEY,
    RATE,
    SERVER,
    TEXT,
    Gathered,
    Reply,
    error_body,
    usage_body,
)
from eagle.serving.requests import ChatRequest, CompletionRequest, RefusedError, SamplingRequest, read

# Seconds between two looks at whether a client that gets everything at once is still there.
LOOKING = 0.5
OPEN = ("/health",)
log = logging.getLogger(__name__)
CLOSING = "the server is shutting down"


@dataclass(frozen=True)
class Limits:
    """What a client may ask.

    Attributes:
        body_bytes: of a request.
        prompt_tokens: of a prompt; None: what the model has room for.
        new_tokens: of a text, and how many there are at most where nothing is said.
        choices: texts of a request.
    """

    body_bytes: int = 1_000_000
    prompt_tokens: int | None = None
    new_tokens: int = 1024
    choices: int = 8


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        engine: writes texts.
        name: of the model.
        method: where a request says nothing of it; None is autoregressive decoding.
        limits: of requests.
        key: that clients must show; None: none.
        template: what the chat template is given beside the conversation.
    """

    engine: Engine
    name: str
    method: Method | None
    limits: Limits
    key: str | None = None
    template: TemplateArguments | None = None


class TooLargeError(Exception):
    """A body of more bytes than are read."""


def application(served: Served) -> FastAPI:
    """The server, as an ASGI application."""

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        wanted = None if request.url.path in OPEN else served.key
        if wanted is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise HTTPException(401, "a key is needed, Authorization: Bearer ...")

    nothing: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title="eagle", dependencies=[Depends(check)], **nothing)
    engine, metrics = served.engine, Metrics(served.engine)

    def counted(response: Response) -> Response:
        metrics.requests.labels(str(response.status_code)).inc()
        return response

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        kind, code = (KEY, "invalid_api_key") if error.status_code == 401 else (INVALID, None)
        return counted(JSONResponse(error_body(message, kind, code=code), error.status_code))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "queue": engine.queued, "busy": engine.busy}

    @app.get("/metrics")
    async def shown() -> Response:
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        one = {"id": served.name, "object": "model", "created": 0, "owned_by": "eagle"}
        return {"object": "list", "data": [one]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return counted(await answer(served, metrics, request, ChatRequest))

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return counted(await answer(served, metrics, request, CompletionRequest))

    return app


async def answer(served: Served, metrics: Metrics, request: Request, kind: type[SamplingRequest]) -> Response:
    """Answer a request, or say why not."""
    began = time.monotonic()
    try:
        asked = read(kind, await _body(request, served.limits.body_bytes))
        prompts = _prompts(served, asked)
        work = _work(served, asked, prompts, request.client.host if request.client else "")
        pieces = Pieces(served.engine, work, metrics, request, began)
    except TooLargeError:
        return JSONResponse(error_body(f"the body has more than {served.limits.body_bytes} bytes", INVALID), 413)
    except RefusedError as error:
        return JSONResponse(error_body(str(error), INVALID, error.field), 400)
    except InputError as error:
        return JSONResponse(error_body(str(error), INVALID), 400)
    except BusyError as error:
        return JSONResponse(error_body(str(error), RATE), 429, {"Retry-After": str(error.seconds)})
    except ClosingError:
        return JSONResponse(error_body(CLOSING, SERVER), 503, {"Retry-After": "10"})
    reply = Reply(
        CHAT if kind is ChatRequest else TEXT, served.name, served.engine.tokenizer, asked.most_logprobs is not None
    )
    tokens = sum(prompt.shape[1] for prompt in prompts)
    # The first piece decides whether there is an answer at all: a prompt may be refused when its turn comes.
    try:
        first = await pieces.next_or_gone()
    except InputError as error:
        return JSONResponse(error_body(str(error), INVALID), 400)
    except ClosingError:
        return JSONResponse(error_body(CLOSING, SERVER), 503, {"Retry-After": "10"})
    except Exception:
        log.exception("a text could not be written")
        return JSONResponse(error_body("the text could not be written; the server's log says why", SERVER), 500)
    if first is None:
        return Response(status_code=499)
    metrics.prompt_tokens.inc(tokens)
    if asked.stream:
        return Stream(reply, first, pieces, tokens if asked.stream_options.include_usage else None)
    return await _whole(reply, first, pieces, tokens, len(prompts) * asked.n)


def _tell(loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[Any], each: Piece | Exception | None) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(inbox.put_nowait, each)


async def _body(request: Request, most: int) -> dict[str, Any]:
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise TooLargeError
    try:
        body = json.loads(found)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RefusedError(f"the body is no JSON: {reason}") from None
    if not isinstance(body, dict):
        raise RefusedError("the body must be a JSON object")
    return body


def _prompts(served: Served, asked: SamplingRequest) -> tuple[Tensor, ...]:
    if isinstance(asked, ChatRequest):
        messages = [message.message() for message in asked.messages]
        return (chat_ids(served.engine.tokenizer, messages, served.template),)
    if not isinstance(asked, CompletionRequest):
        raise TypeError(asked)
    ids = [served.engine.tokenizer(each).input_ids if isinstance(each, str) else each for each in asked.prompts]
    vocabulary = served.engine.model.target.vocab_size
    for each in ids:
        if not each or not all(0 <= token < vocabulary for token in each):
            raise RefusedError(f"prompt: it must have at least one token, all of them below {vocabulary}", "prompt")
    if not ids:
        raise RefusedError("prompt: there is none", "prompt")
    return tuple(torch.tensor([each]) for each in ids)


def _work(served: Served, asked: SamplingRequest, prompts: tuple[Tensor, ...], client: str) -> Work:
    """What a request comes to.

    Raises:
        RefusedError: it asks too much.
    """
    limits, context = served.limits, served.engine.model.target.context_length
    if asked.model not in (None, served.name):
        raise RefusedError(f"there is no model {asked.model!r} here; {served.name!r} is served", "model")
    if len(prompts) * asked.n > limits.choices:
        raise RefusedError(f"n: at most {limits.choices} texts are written for a request", "n")
    longest = max(prompt.shape[1] for prompt in prompts)
    room = None if context is None else context - longest
    if (room is not None and room < 1) or (limits.prompt_tokens is not None and longest > limits.prompt_tokens):
        most = min(each for each in (limits.prompt_tokens, context and context - 1) if each is not None)
        raise RefusedError(f"the prompt has {longest} tokens; at most {most} are read")
    if asked.most_tokens is not None and asked.most_tokens > limits.new_tokens:
        raise RefusedError(f"max_tokens: at most {limits.new_tokens} are written here", "max_tokens")
    new_tokens = limits.new_tokens if asked.most_tokens is None else asked.most_tokens
    method = asked.drafting(served.method)
    if method is not None:
        try:
            served.engine.model.shape_for(method, asked.temperature)
        except InputError as error:
            raise RefusedError(str(error), "method") from None
    params = asked.params(min(new_tokens, room or new_tokens))
    return Work(client, prompts, asked.n, params, method, asked.seed)


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
        loop = asyncio.get_running_loop()
        self._ticket = engine.submit(work, lambda each: _tell(loop, self._inbox, each))

    def give_up(self) -> None:
        """No more are wanted."""
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


async def _whole(reply: Reply, first: Piece, pieces: Pieces, tokens: int, count: int) -> Response:
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


class Stream(StreamingResponse):
    """Server-sent events: a piece each, at last the usage where it was asked for.

    Args:
        reply: makes them.
        first: piece.
        pieces: the others. When the client goes they are given up.
        tokens: of the prompts, for the usage; None: it was not asked for.
    """

    def __init__(self, reply: Reply, first: Piece, pieces: Pieces, tokens: int | None) -> None:
        self._pieces = pieces
        events = _events(reply, first, pieces, tokens)
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ``StreamingResponse``."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.give_up()


async def _events(reply: Reply, first: Piece, pieces: Pieces, tokens: int | None) -> AsyncIterator[str]:
    usage = Usage()
    piece: Piece | None = first
    try:
        while piece is not None:
            usage = usage + piece.usage
            yield _event(reply.chunk(piece))
            piece = await pieces.next()
        if tokens is not None:
            yield _event(reply.usage_chunk(usage_body(tokens, usage)))
        yield "data: [DONE]\n\n"
    except (InputError, PromptError, ClosingError) as error:
        yield _event(error_body(str(error) or CLOSING, SERVER))
    except Exception:
        log.exception("a text could not be finished")
        yield _event(error_body("the text could not be finished; the server's log says why", SERVER))


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
