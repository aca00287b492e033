"""The prompt of a text, as callers of ``generate`` give it: tensors or lists, padded on the left or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle.decoding.sampling_params import SamplingParams
from eagle.errors import ContextFullError, InputError, PromptError

AS_TEXT = "pass attention_mask=torch.ones_like(input_ids) if that is text"


@dataclass(frozen=True)
class Prompt:
    """A prompt without its padding.

    Attributes:
        input_ids: (1, n) int64, what the model reads.
        padding: (1, m) int64, what stood before it.
    """

    input_ids: Tensor
    padding: Tensor

    @classmethod
    def read(
        cls, input_ids: object, attention_mask: object, vocab_size: int, pad_id: int | None, stop_ids: frozenset[int]
    ) -> Prompt:
        """Take the padding off a prompt.

        Without a mask it is what the stock ``generate`` takes for padding: leading pad tokens, unless these also end
        texts.

        Args:
            input_ids: (1, n) or (n,) integers, a tensor or lists.
            attention_mask: of the same shape, 0 for padding; None: see above.
            vocab_size: of the model.
            pad_id: its padding token.
            stop_ids: tokens that end texts.

        Raises:
            InputError: something else, several prompts, tokens that the model does not have, a mask with holes, or
                nothing left.
        """
        ids = _one_row("input_ids", input_ids)
        if ids.shape[1] == 0:
            raise PromptError("the prompt is empty; give at least one token (the model's bos token, for instance)")
        if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            raise PromptError(f"input_ids hold a token outside the model's vocabulary of {vocab_size}")
        if attention_mask is not None:
            mask = _one_row("attention_mask", attention_mask, of_truth=True)
            if mask.shape != ids.shape:
                raise InputError(
                    f"attention_mask has shape {tuple(mask.shape)}, but input_ids have {tuple(ids.shape)}; it needs an "
                    "entry for each token"
                )
            hidden = (mask == 0).to(ids.device)
            remedy = "only padding on the left can be hidden: cut the other hidden tokens out of input_ids"
        elif pad_id is None or pad_id in stop_ids:
            hidden = torch.zeros_like(ids, dtype=torch.bool)
            remedy = ""
        else:
            hidden = ids == pad_id
            remedy = f"the stock model would hide it; {AS_TEXT}"
        shown = (~hidden[0]).nonzero()[:, 0]
        if not len(shown):
            why = "attention_mask hides all of it" if attention_mask is not None else f"it is all padding; {AS_TEXT}"
            raise InputError(f"the prompt is empty: {why}")
        first = int(shown[0])
        inside = hidden[0, first:].nonzero()[:, 0]
        if len(inside):
            what = (
                "attention_mask hides"
                if attention_mask is not None
                else f"input_ids have the padding token {pad_id} at"
            )
            raise InputError(
                f"{what} position {first + int(inside[0])}, behind the first token of the prompt; {remedy}"
            )
        return cls(ids[:, first:], ids[:, :first])

    def limit(self, params: SamplingParams, context: int | None) -> int:
        """Tokens that its text may grow to, the padding not counted.

        Args:
            params: of the text.
            context: positions of the model; None: no bound is known.

        Raises:
            ContextFullError: they leave no room for an answer.
        """
        length = self.input_ids.shape[1]
        max_length = params.max_length - self.padding.shape[1]
        for room, name in ((max_length, "max_length"), (context, "the model's context")):
            if room is not None and length >= room:
                raise ContextFullError(
                    f"the prompt of {length} tokens leaves no room for an answer within {name} of {room}"
                )
        return min(length + params.max_new_tokens, max_length, context or max_length)

    def padded(self, output_ids: Tensor) -> Tensor:
        """A text that begins with the prompt, with the padding in front as it was given."""
        return torch.cat([self.padding.to(output_ids), output_ids], dim=1)


def _one_row(name: str, given: object, of_truth: bool = False) -> Tensor:
    """(1, n) int64 from a tensor or from lists, or from (n,)."""
    if not isinstance(given, Tensor):
        given = _tensor(name, given)
    if given.ndim == 1:
        given = given[None]
    if given.ndim != 2 or given.shape[0] != 1:
        raise InputError(f"{name} must have shape (1, n), one prompt at a time, not {tuple(given.shape)}")
    integers = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if not (integers or of_truth or given.numel() == 0):
        raise InputError(f"{name} must be integers, not {given.dtype}")
    return given if of_truth else given.long()


def _tensor(name: str, given: Any) -> Tensor:
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        # Arrays of numpy and what a tokenizer returns come here, too.
        rows = getattr(given, "tolist", lambda: None)()
        if rows is None:
            raise InputError(
                f"{name} must be a tensor or a list of token ids, not {type(given).__name__}; of what a tokenizer "
                "returns take .input_ids"
            )
        given = rows
    try:
        return torch.tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{name} must be a tensor or a list of token ids: {error}") from error
