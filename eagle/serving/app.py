"""The server's routes: OpenAI's interface over HTTP, health, and what is counted."""

from __future__ import annotations

import hmac
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from torch import Tensor

from eagle.chat_template import TemplateArguments, chat_ids
from eagle.decoding.method import Method
from eagle.errors import InputError
from eagle.serving.engine import BusyError, ClosingError, Engine, Work
from eagle.serving.metrics import Metrics
from eagle.serving.pieces import Pieces, Stream, whole
from eagle.serving.replies import CHAT, CLOSING, INVALID, KEY, RATE, SERVER, TEXT, Reply, error_body
from eagle.serving.requests import ChatRequest, CompletionRequest, RefusedError, SamplingRequest, read

OPEN = ("/health",)
TEXTS: dict[str, type[SamplingRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}
log = logging.getLogger(__name__)


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


class Application:
    """The server, as an ASGI application.

    What is asked for texts goes past the framework, of which it needs nothing: a first token is expected within less
    than a tenth of a second, of which the routes, layers and dependencies around a handler would take their part.

    Args:
        served: what is served.
    """

    def __init__(self, served: Served) -> None:
        self.served, self.metrics = served, Metrics(served.engine)
        self._others = _others(served, self.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        request, path = Request(scope, receive), scope["path"]
        kind = TEXTS.get(path) if scope["method"] == "POST" else None
        if path not in OPEN and not _shows(request, self.served.key):
            message = f"{request.method} {path}: a key is needed, Authorization: Bearer ..."
            response: Response = JSONResponse(error_body(message, KEY, code="invalid_api_key"), 401)
        elif kind is None:
            await self._others(scope, receive, send)
            return
        else:
            response = await answer(self.served, self.metrics, request, kind)
        self.metrics.requests.labels(str(response.status_code)).inc()
        await response(scope, receive, send)


def _shows(request: Request, key: str | None) -> bool:
    """Whether a request shows the key, if there is one."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ") if key is not None else ""
    return key is None or hmac.compare_digest(given.encode(), key.encode())


def _others(served: Served, metrics: Metrics) -> FastAPI:
    """All that is not asked for texts."""
    nothing: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title="eagle", **nothing)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        metrics.requests.labels(str(error.status_code)).inc()
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(error_body(message, INVALID), error.status_code, error.headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "queue": served.engine.queued, "busy": served.engine.busy}

    @app.get("/metrics")
    async def shown() -> Response:
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        one = {"id": served.name, "object": "model", "created": 0, "owned_by": "eagle"}
        return {"object": "list", "data": [one]}

    def elsewhere() -> None:
        """For the paths of texts to be known: asked for otherwise than by POST they are refused as such."""
        raise HTTPException(404)

    for path in TEXTS:
        app.post(path)(elsewhere)
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
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception:
        return _failed()
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
        return _failed()
    if first is None:
        return Response(status_code=499)
    metrics.prompt_tokens.inc(tokens)
    if asked.stream:
        return Stream(reply, first, pieces, tokens if asked.stream_options.include_usage else None)
    return await whole(reply, first, pieces, tokens, len(prompts) * asked.n)


def _failed() -> Response:
    """What is said where something went wrong that nobody thought of."""
    log.exception("a text could not be written")
    return JSONResponse(error_body("the text could not be written; the server's log says why", SERVER), 500)


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
