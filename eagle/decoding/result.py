"""What a generation gives those who wait for its end."""

from __future__ import annotations

from torch import Tensor

from eagle.decoding.decoding import Decoding
from eagle.decoding.info import DecodingInfo
from eagle.decoding.logprobs import Logprobs
from eagle.decoding.prompt import Prompt


def result(decoding: Decoding, prompt: Prompt, log: bool) -> Tensor | tuple[Tensor, int, int, DecodingInfo]:
    """Decode to the end.

    Args:
        decoding: that has begun.
        prompt: its.
        log: whether counts and timings are wanted.

    Returns:
        See ``EaModel.eagenerate``.
    """
    while not decoding.finished:
        decoding.step()
    output_ids = prompt.padded(decoding.output_ids())
    if not log:
        return output_ids
    info = decoding.info
    if isinstance(decoding.watch, Logprobs):
        info["logprobs"] = decoding.watch.found
    return output_ids, decoding.new_tokens, len(info["tree_time"]) - 1, info
