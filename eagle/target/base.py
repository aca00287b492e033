"""Loading a base model and its tokenizer with ``transformers``, whatever goes wrong explained in one line.

A model is only taken with every tensor that its architecture has, and without any that it has no place for: where a
tensor is missing or of another shape ``transformers`` goes on with random numbers, and one it does not know is left
out, so that the texts would be another model's.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from eagle.devices import best_device
from eagle.errors import InputError
from eagle.folders import existing_folder, first_line, not_found

# Tensors that have no place in a language model and that its texts do not need either. Those which a class of
# ``transformers`` names as such itself (heads for several tokens, masks kept as buffers) never get here.
HARMLESS = re.compile(
    # Tables that are computed from the configuration, which older versions saved.
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)$"
    # Scales of a quantised key-value cache, which only servers with such a cache read.
    r"|\.(q|k|v|kv|prob)_scale$"
)
# Parts of a multimodal checkpoint beside its language model, and layers that draft. Text goes through none of them.
BESIDE_TEXT = re.compile(r"vision|visual|image|video|audio|speech|multi_?modal|mm_projector|talker|mtp|nextn")
CONVERSION_ERROR = re.compile(r"^(\S+) +\| (?:\x1b\[[0-9;]*m)*CONVERSION", re.MULTILINE)
THE_BASE = "the base model"


def load_base(path: str, what: str = THE_BASE, **hf_kwargs: Any) -> PreTrainedModel:
    """A base model in evaluation mode, by default on the best device of the machine.

    Args:
        path: local directory or hub id.
        what: to call it.
        **hf_kwargs: passed to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        InputError: it could not be loaded, or lacks a tensor, has one of another shape or one too many (names it).
    """
    if "torch_dtype" in hf_kwargs:
        hf_kwargs["dtype"] = hf_kwargs.pop("torch_dtype")
    hf_kwargs.setdefault("device_map", {"": best_device()})
    # Sizes are compared below, where the tensor can be named; whoever asks to ignore them would get random weights.
    hf_kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    folder = existing_folder(path, what)
    with _loading_report() as report:
        try:
            model, found = AutoModelForCausalLM.from_pretrained(str(folder or path), **hf_kwargs)
        except Exception as error:  # of many types: of the files, the arguments, the device, the model's own code
            if names := CONVERSION_ERROR.findall("".join(report)):
                raise InputError(
                    f"{what} {path} cannot be put together from its tensors: those of {_named(names)} are not all "
                    "there, or of different shapes; fetch it anew"
                ) from error
            raise _unloadable(path, what, f"{what} {path} could not be loaded", error) from error
    _refuse_other_tensors(path, what, model, found)
    return model.eval()


def load_config(path: str) -> PretrainedConfig:
    """The configuration of a base model, without its weights.

    Args:
        path: local directory or hub id.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    folder = existing_folder(path, THE_BASE)
    try:
        return AutoConfig.from_pretrained(str(folder or path))
    except Exception as error:  # as above
        raise _unloadable(path, THE_BASE, f"{THE_BASE} {path} has no readable configuration", error) from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Args:
        path: local directory or hub id.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    folder = existing_folder(path, "the tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(folder or path))
    except Exception as error:  # the library behind it raises bare ones
        raise _unloadable(path, "the tokenizer", f"no tokenizer could be loaded from {path}", error) from error


def _unloadable(path: str, what: str, said: str, error: Exception) -> InputError:
    """What to say of an error: of a name that is no folder, that the hub has none such, if that is what it was."""
    folder = existing_folder(path, what)
    if isinstance(error, OSError) and folder is None:
        return not_found(path, what, error)
    if isinstance(error, SafetensorError):
        file = next((file for file in sorted((folder or Path()).glob("*.safetensors")) if not _opens(file)), "a file")
        return InputError(f"{said}: {file} is cut off or damaged ({first_line(error)}); fetch it anew")
    return InputError(f"{said}: {first_line(error)}")


def _opens(file: Path) -> bool:
    """Whether a file has a header of safetensors, and all that it announces."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _refuse_other_tensors(path: str, what: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Compare the tensors that a checkpoint has with those of the model, from the loading info of ``transformers``.

    What a model does without (the second name of a tied tensor, buffers that are computed) is not missing there.
    """
    if missing := found["missing_keys"]:
        raise InputError(
            f"{what} {path} lacks {_named(missing)}, which its config.json asks for: its files are incomplete, or "
            "another model's; fetch it anew"
        )
    if found["mismatched_keys"]:
        key, theirs, ours = min(found["mismatched_keys"])
        raise InputError(
            f"{what} {path} has {key!r} in the shape {tuple(theirs)}, but its config.json asks for {tuple(ours)}: "
            "one of the two is another model's; fetch it anew"
        )
    modules = {name for name, _ in model.named_modules()}
    if unknown := [key for key in found["unexpected_keys"] if not _harmless(key, modules)]:
        raise InputError(
            f"{what} {path} has {_named(unknown)}, for which {type(model).__name__} of its config.json has no "
            "place: without it the texts would be another model's; correct the configuration or fetch it anew"
        )


def _harmless(key: str, modules: set[str]) -> bool:
    """Whether the texts of a model with these modules do not depend on a tensor that it has no place for."""
    parts = key.split(".")[:-1]
    above = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    beside = any(BESIDE_TEXT.search(part) and path not in modules for part, path in zip(parts, above, strict=True))
    return beside or HARMLESS.search(key) is not None


def _named(keys: Iterable[str]) -> str:
    first, *others = sorted(keys)
    return f"the tensor {first!r}" + (f" and {len(others)} more" if others else "")


@contextlib.contextmanager
def _loading_report() -> Iterator[list[str]]:
    """Keep the table that ``transformers`` logs of tensors that do not fit, instead of showing it: here it is read."""
    kept: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if is_report := "LOAD REPORT" in record.getMessage():
            kept.append(record.getMessage())
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield kept
    finally:
        logger.removeFilter(keep)
