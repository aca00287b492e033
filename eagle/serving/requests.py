"""What clients may ask, in the form of OpenAI's interface: read, checked, and refused by name where it is not done.

Source: OpenAI's API reference, ``/v1/chat/completions`` and ``/v1/completions``. Beside its fields there are ``method``
(``eagle3``, ``hsd``, ``baseline``, or as ``Method.parse``), ``top_k``, ``min_p`` and ``repetition_penalty``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eagle.chat_template import Message
from eagle.decoding.method import Method
from eagle.decoding.sampling_params import MOST_LOGPROBS, SamplingParams
from eagle.errors import InputError

BASELINE = "baseline"
# What says who asks, or how it is to be stored elsewhere, and nothing about the answer.
IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
)
# Values of other fields that ask for nothing.
NOTHING: tuple[Any, ...] = (False, 0, "", [], {}, "none", "auto", {"type": "text"}, ["text"])


class RefusedError(InputError):
    """A request that is not answered.

    Attributes:
        field: of the request that is the reason, if it is one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Checked(BaseModel):
    """Fields of the types that they are said to have; null is what is left out."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    def refuse_others(self, where: str = "") -> None:
        """Refuse fields that would change the answer and are not known.

        Raises:
            RefusedError: names the first.
        """
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and not any(value == each and type(value) is type(each) for each in NOTHING):
                raise RefusedError(f"{where}{name} is not supported here; leave it out", name)


class StreamOptions(Checked):
    """Of a stream."""

    include_usage: bool = False


class SamplingRequest(Checked):
    """What both interfaces have in common."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    method: str | None = None

    @property
    def most_tokens(self) -> int | None:
        """New tokens asked for; None: as many as there may be."""
        return self.max_tokens

    @property
    def most_logprobs(self) -> int | None:
        """See ``SamplingParams.logprobs``."""
        return None

    def params(self, max_new_tokens: int) -> SamplingParams:
        """How the text is to be written.

        Raises:
            RefusedError: a value that is out of its range.
        """
        try:
            return SamplingParams(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                stop=() if self.stop is None else self.stop,
                logprobs=self.most_logprobs,
                max_new_tokens=max_new_tokens,
                max_length=2**31,
            )
        except InputError as error:
            raise RefusedError(str(error)) from None

    def drafting(self, default: Method | None) -> Method | None:
        """The method asked for; None is autoregressive decoding.

        Raises:
            RefusedError: there is no such method.
        """
        if self.method is None:
            return default
        if self.method == BASELINE:
            return None
        try:
            return Method.parse(self.method)
        except InputError as error:
            raise RefusedError(f"{error}; or {BASELINE}", "method") from None


class TextPart(Checked):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Checked):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        """As chat templates have it.

        Raises:
            RefusedError: it has something that is not known.
        """
        self.refuse_others("messages: ")
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=content)


class ChatRequest(SamplingRequest):
    """``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)

    @property
    def most_tokens(self) -> int | None:
        """See ``SamplingRequest.most_tokens``."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def most_logprobs(self) -> int | None:
        """See ``SamplingRequest.most_logprobs``."""
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(SamplingRequest):
    """``/v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    best_of: int | None = None

    @property
    def most_logprobs(self) -> int | None:
        """See ``SamplingRequest.most_logprobs``."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or several."""
        one = isinstance(self.prompt, str) or all(isinstance(each, int) for each in self.prompt)
        return [self.prompt] if one else self.prompt  # type: ignore[list-item, return-value]


def read(kind: type[SamplingRequest], body: Mapping[str, Any]) -> Any:
    """A request of a kind.

    Raises:
        RefusedError: it is none; names the first field that is wrong.
    """
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(each) for each in first["loc"])
        raise RefusedError(f"{field or 'the body'}: {first['msg']}", field or None) from None
    request.refuse_others()
    if isinstance(request, CompletionRequest) and request.best_of not in (None, request.n):
        raise RefusedError("best_of is not supported here; leave it out", "best_of")
    return request
