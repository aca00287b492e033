"""The form in which drafting multiplies by a head's weights.

What a head says is only a proposal, and its samples are verified against the laws they were really drawn from, so
rounding its weights may cost acceptance but never changes the law of the text.
"""

from __future__ import annotations

import torch

from eagle.drafters.eagle3.head import Eagle3Head
from eagle.target.int8 import DTYPES, ENGINE, INT8, prepare_weights


def prepare_for_drafting(head: Eagle3Head, quantize: str | None) -> None:
    """Put the weights of a head into the form in which drafting multiplies by them; it cannot be trained or written
    afterwards.

    One level of a tree costs what it takes to read them from memory, from which the target's have driven them since the
    level before. On a CPU these are 8-bit ones where there are kernels for it, whether or not the target is quantised.

    Args:
        head: as loaded.
        quantize: as the target, see ``eagle.target.int8``.

    Raises:
        InputError: a head that cannot be quantised, though the target is.
    """
    head.join()
    on_cpu = next(head.parameters()).device.type == "cpu"
    rounds = on_cpu and ENGINE in torch.backends.quantized.supported_engines and _dtype_of_8_bits(head)
    prepare_weights(head, INT8 if quantize is not None or rounds else None)


def _dtype_of_8_bits(head: Eagle3Head) -> bool:
    return all(parameter.dtype in DTYPES for parameter in head.parameters())
