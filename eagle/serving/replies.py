"""Answers in the form of OpenAI's interface."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from eagle.decoding.logprobs import Logprob
from eagle.serving.engine import Piece, Usage
from eagle.text import token_bytes

INVALID, RATE, SERVER, KEY = ("invalid_request_error", "rate_limit_error", "server_error", "authentication_error")
CHAT, TEXT = "chat.completion", "text_completion"
CLOSING = "the server is shutting down"


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error, for people in one sentence."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage_body(prompt_tokens: int, usage: Usage) -> dict[str, Any]:
    """Tokens of a request; ``rounds`` is not OpenAI's."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": usage.new_tokens,
        "total_tokens": prompt_tokens + usage.new_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.remembered},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.drafted - usage.accepted,
        },
        "rounds": usage.rounds,
    }


@dataclass
class Gathered:
    """A text, put together from its pieces."""

    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)
    finish: str | None = None


class Reply:
    """Makes what one request is answered with.

    Args:
        kind: ``CHAT`` or ``TEXT``.
        model: its name.
        tokenizer: of log-probabilities.
        wants_logprobs: whether they were asked for.
    """

    def __init__(self, kind: str, model: str, tokenizer: PreTrainedTokenizerBase, wants_logprobs: bool) -> None:
        self.kind, self._tokenizer, self._wants_logprobs = kind, tokenizer, wants_logprobs
        prefix = "chatcmpl" if kind == CHAT else "cmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._begun: set[int] = set()
        # Where the next token of each text stands in it, for ``text_offset``.
        self._offsets: dict[int, int] = {}

    def whole(self, texts: Sequence[Gathered], usage: dict[str, Any]) -> dict[str, Any]:
        """All texts at once."""
        choices = []
        for index, each in enumerate(texts):
            choice: dict[str, Any] = {"index": index, "finish_reason": each.finish}
            choice["logprobs"] = self._logprobs(index, each.logprobs)
            if self.kind == CHAT:
                choice["message"] = {"role": "assistant", "content": each.text, "refusal": None}
            else:
                choice["text"] = each.text
            choices.append(choice)
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece of a stream."""
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.finish}
        choice["logprobs"] = self._logprobs(piece.index, piece.logprobs)
        if self.kind == CHAT:
            first = {} if piece.index in self._begun else {"role": "assistant"}
            self._begun.add(piece.index)
            choice["delta"] = first | {"content": piece.text}
        else:
            choice["text"] = piece.text
        return {**self._head, "object": self._chunks, "choices": [choice]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last piece of a stream whose usage was asked for."""
        return {**self._head, "object": self._chunks, "choices": [], "usage": usage}

    @property
    def _chunks(self) -> str:
        return f"{CHAT}.chunk" if self.kind == CHAT else TEXT

    def _logprobs(self, index: int, found: Sequence[Logprob]) -> dict[str, Any] | None:
        if not self._wants_logprobs:
            return None
        if self.kind == CHAT:
            content = [
                self._of_token(each.token, each.logprob)
                | {"top_logprobs": [self._of_token(token, value) for token, value in each.top]}
                for each in found
            ]
            return {"content": content, "refusal": None}
        texts = [self._text(each.token) for each in found]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_finite(each.logprob) for each in found],
            "top_logprobs": [{self._text(token): _finite(value) for token, value in each.top} for each in found],
            "text_offset": offsets,
        }

    def _of_token(self, token: int, logprob: float) -> dict[str, Any]:
        found = token_bytes(self._tokenizer, token)
        spelled = None if found is None else list(found)
        return {"token": self._text(token), "logprob": _finite(logprob), "bytes": spelled}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's interface says -9999 of what is as good as impossible."""
    return max(logprob, -9999.0)
