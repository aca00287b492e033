"""How one text is to be sampled and where it ends: read once, at the door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import torch

from eagle.checks import number, whole_number
from eagle.errors import InputError
from eagle.tree.warping import Warper

# As OpenAI's interface has it.
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """Sampling and ends of a text; names and defaults are those of the original EAGLE code.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass; 0 and 1 mean off.
        top_k: most likely tokens kept; 0 means off.
        max_new_tokens: new tokens at most.
        max_length: tokens at most, the prompt included.
        is_llama3: ``<|eot_id|>`` also ends the text.
        generator: source of randomness; None is torch's global CPU generator.
        min_p: tokens kept have at least this share of the most likely one's probability; 0 means off.
        repetition_penalty: what logits of tokens that the text holds already are divided by (multiplied with, below 0),
            as ``transformers`` does it; None is what the model's ``generation_config`` says.
        stop: strings that end the text; the token that completes one is its last.
        logprobs: how many of the most likely tokens are told with each new one, of the law that it was drawn from (at
            temperature 0 of the softmax); None: nothing is told.

    Raises:
        InputError: a value out of its range or of another kind.
    """

    temperature: float = 0.0
    top_p: float = 0.0
    top_k: float = 0.0
    max_new_tokens: int = 512
    max_length: int = 2048
    is_llama3: bool = False
    generator: torch.Generator | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self.warper()
        if self.repetition_penalty is not None and not 0 < number("repetition_penalty", self.repetition_penalty) < inf:
            raise InputError(f"repetition_penalty must be a finite number above 0, not {self.repetition_penalty}")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if not all(isinstance(string, str) and string for string in self.stop):
            raise InputError(f"stop must be a string or several, none of them empty, not {self.stop!r}")
        if self.logprobs is not None and not 0 <= whole_number("logprobs", self.logprobs) <= MOST_LOGPROBS:
            raise InputError(f"logprobs must be 0 to {MOST_LOGPROBS}, not {self.logprobs}")
        for name in ("max_new_tokens", "max_length"):
            value = whole_number(name, getattr(self, name))
            if value < 1:
                raise InputError(f"{name} must be 1 or more, not {value}")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise InputError(f"generator must be a torch.Generator, not {type(self.generator).__name__}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> SamplingParams:
        """From arguments, of which None means the default; others than those above are passed over.

        Raises:
            InputError: a value out of its range or of another kind.
        """
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in names and value is not None})

    def warper(self) -> Warper:
        """The law that these parameters mean."""
        return Warper(self.temperature, self.top_p, self.top_k, self.min_p)
