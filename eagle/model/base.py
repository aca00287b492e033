"""Loading a base model and its tokenizer with ``transformers``, whatever goes wrong explained in one line."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from eagle.errors import InputError
from eagle.model.devices import best_device


def load_base(path: str, **hf_kwargs: Any) -> PreTrainedModel:
    """A base model in evaluation mode, by default on the best device of the machine.

    Args:
        path: local directory or hub id.
        **hf_kwargs: passed to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        InputError: it could not be loaded.
    """
    if "torch_dtype" in hf_kwargs:
        hf_kwargs["dtype"] = hf_kwargs.pop("torch_dtype")
    hf_kwargs.setdefault("device_map", {"": best_device()})
    try:
        return AutoModelForCausalLM.from_pretrained(path, **hf_kwargs).eval()
    except (OSError, ValueError, TypeError, ImportError, KeyError, RuntimeError) as error:
        raise InputError(f"the base model {path} could not be loaded: {_first_line(error)}") from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Args:
        path: local directory or hub id.

    Raises:
        InputError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"no tokenizer could be loaded from {path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
