"""From files to a target that is ready to score."""

from __future__ import annotations

from typing import Any

import torch

from eagle.target.base import THE_BASE, load_base
from eagle.target.check import refuse_wrong_scores
from eagle.target.int8 import INT8, prepare_weights
from eagle.target.target import Target


def load_target(
    path: str, quantize: str | None = None, verify: bool = True, what: str = THE_BASE, **hf_kwargs: Any
) -> Target:
    """Load a base model, its weights as they are multiplied.

    Args:
        path: local directory or hub id.
        quantize: see ``int8.prepare_weights``.
        verify: whether to try out that it scores trees rightly, see ``refuse_wrong_scores``.
        what: the model is called in errors.
        **hf_kwargs: see ``load_base``. Where no dtype is given, a model that is quantised is loaded in float32: in
            bfloat16 numbers differ in their last place by which kernel made them, and rounding to 8 bits makes more of
            that than the check lets pass.

    Raises:
        InputError: it cannot be loaded, quantised, or score trees.
    """
    if quantize == INT8 and hf_kwargs.get("dtype", hf_kwargs.get("torch_dtype", "auto")) == "auto":
        hf_kwargs["dtype"] = torch.float32
    base = load_base(path, what, **hf_kwargs)
    prepare_weights(base, quantize)
    target = Target(base)
    if verify:
        refuse_wrong_scores(target)
    return target
