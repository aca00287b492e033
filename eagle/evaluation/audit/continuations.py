"""Many short texts behind one prompt: speculative ones, and plain ones of the stock model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.speculation import speculation
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.processors import PathProcessors
from eagle.target.text import Text
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper

ENDED = -1
"""Stands behind the stop token of a text."""

ROWS = 32
"""Prefixes that the stock model reads at a time; each has a copy of the prompt's cache."""


@dataclass(frozen=True)
class Speculative:
    """Texts of a speculative method.

    Attributes:
        texts: (count, length) int64, the first new tokens of each; ``ENDED`` behind a stop token.
        drafted: (count, length) bool, the tokens that were drafted and accepted.
    """

    texts: NDArray[np.int64]
    drafted: NDArray[np.bool_]


def token_limit(model: EaModel, shape: TreeShape, prompt: Tensor, length: int) -> int:
    """Tokens, the prompt's included, that a text may grow to so that its first ``length`` ones are not shaped by it.

    Raises:
        InputError: more than the model's context, or positions that it encodes in two ways.
    """
    context = model.target.context_length
    # The last round may begin one token short of the length, and must neither cut its tree nor reach the limit.
    limit = prompt.shape[1] + length + shape.levels(shape.total_token) + 1
    if context is not None and limit > context:
        raise InputError(
            f"the prompt of {prompt.shape[1]} tokens leaves no room for {length} tokens and a draft tree within the "
            f"model's context of {context}"
        )
    model.target.refuse_crossing(prompt.shape[1], limit)
    return limit


def speculative_texts(
    model: EaModel,
    method: Method,
    prompt: Tensor,
    warper: Warper,
    count: int,
    length: int,
    stop_ids: frozenset[int],
    generator: torch.Generator,
    finished: Callable[[], object],
    processors: PathProcessors | None = None,
) -> Speculative:
    """Draw texts with a method. The prompt is read once; all that is random is drawn anew for every text.

    Args:
        model: the pair, with the bounds of the trees.
        method: draws them.
        prompt: (1, n) int64.
        warper: the law to sample from.
        count: texts.
        length: tokens of each that are kept. Trees are as large as in long texts, however short this is.
        stop_ids: end a text.
        generator: source of randomness.
        finished: called after each text.
        processors: of the model's ``generation_config``.

    Raises:
        InputError: the prompt leaves no room, or logits with NaN or infinity.
    """
    chosen, start = speculation(model.offers, method, warper.temperature), prompt.shape[1]
    limit = token_limit(model, chosen.shape, prompt, length)
    decoding = Decoding(
        model.target,
        chosen,
        Text(prompt, warper, limit, generator=generator, processors=processors),
    )
    texts = np.full((count, length), ENDED, dtype=np.int64)
    drafted = np.zeros((count, length), dtype=np.bool_)
    for number in range(count):
        if number:
            decoding.restart(generator)
        while decoding.new_tokens < length and stop_ids.isdisjoint(decoding.tokens[start:]):
            decoding.step()
        new = _until_stop(decoding.tokens[start : start + length], stop_ids)
        texts[number, : len(new)] = new
        place = 1
        for accepted in decoding.info["accept_length"]:
            drafted[number, place : min(place + accepted, len(new))] = True
            place += accepted + 1
        finished()
    decoding.stop()
    return Speculative(texts, drafted)


@torch.inference_mode()
def plain_texts(
    model: PreTrainedModel,
    prompt: Tensor,
    warper: Warper,
    count: int,
    length: int,
    stop_ids: frozenset[int],
    generator: torch.Generator,
    processors: PathProcessors | None = None,
) -> NDArray[np.int64]:
    """Draw texts token by token from the stock model.

    Nothing of speculative decoding takes part: no tree, no mask, no cache of this package. What follows a prefix is
    asked for once, however many texts share it.

    Args:
        model: the base model.
        prompt: (1, n) int64.
        warper: the law to sample from.
        count: texts.
        length: tokens of each.
        stop_ids: end a text.
        generator: source of randomness, on the CPU.
        processors: of the model's ``generation_config``.

    Returns:
        (count, length) int64; ``ENDED`` behind a stop token.

    Raises:
        InputError: logits with NaN or infinity.
    """
    read = DynamicCache(config=model.config)
    logits = model(input_ids=prompt, past_key_values=read, use_cache=True).logits[:, -1]
    texts = np.full((count, length), ENDED, dtype=np.int64)
    texts[:, 0] = _draws(_laws(logits, warper, processors, prompt)[0], count, generator)
    over = [ENDED, *stop_ids]
    for place in range(1, length):
        going = np.flatnonzero(~np.isin(texts[:, place - 1], over))
        prefixes, sizes, texts_of = _shared(texts[going, :place])
        for first in range(0, len(prefixes), ROWS):
            rows = torch.from_numpy(prefixes[first : first + ROWS]).to(prompt.device)
            written = torch.cat([prompt.expand(len(rows), -1), rows], dim=1)
            laws = _laws(_behind(model, read, rows), warper, processors, written)
            for law, mine, size in zip(
                laws, texts_of[first : first + ROWS], sizes[first : first + ROWS].tolist(), strict=True
            ):
                texts[going[mine], place] = _draws(law, size, generator)
    return texts


def _until_stop(tokens: list[int], stop_ids: frozenset[int]) -> list[int]:
    """The tokens up to the first stop token, which is kept."""
    end = next((place for place, token in enumerate(tokens, start=1) if token in stop_ids), len(tokens))
    return tokens[:end]


def _shared(
    prefixes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
    """The different rows of (n, k) prefixes, how often each occurs, and where."""
    different, row_of, sizes = np.unique(prefixes, axis=0, return_inverse=True, return_counts=True)
    places = np.argsort(row_of.reshape(-1), kind="stable")
    return different, sizes, np.split(places, np.cumsum(sizes)[:-1])


def _behind(model: PreTrainedModel, read: DynamicCache, prefixes: Tensor) -> Tensor:
    """(rows, V) logits of what follows the prompt and each of (rows, j) prefixes."""
    cache = copy.deepcopy(read)
    cache.batch_repeat_interleave(len(prefixes))
    return model(input_ids=prefixes, past_key_values=cache, use_cache=True).logits[:, -1]


def _laws(logits: Tensor, warper: Warper, processors: PathProcessors | None, written: Tensor) -> Tensor:
    """(rows, V) logits behind (rows, length) tokens -> (rows, V) float64 probabilities on the host."""
    if processors is not None:
        logits = processors.of_texts(logits, written)
    laws = warper(logits).cpu().double()
    if not bool(laws.isfinite().all()):
        raise InputError(
            "the target's logits contain NaN or infinity; check the model's weights, or load it in a wider dtype "
            "(--dtype float32)"
        )
    return laws


def _draws(law: Tensor, count: int, generator: torch.Generator) -> NDArray[np.int64]:
    """(count,) tokens."""
    drawn: NDArray[np.int64] = torch.multinomial(law, count, replacement=True, generator=generator).numpy()
    return drawn
