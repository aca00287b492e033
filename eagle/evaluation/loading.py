"""Loading the pair that a program's arguments name."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle import assets
from eagle.errors import InputError
from eagle.model.checkpoint import local_folder
from eagle.model.ea_model import EaModel, best_device
from eagle.model.tree import TreeShape

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
TREE_FILE = "tree.json"
DEFAULT_TREE = TreeShape(total_token=60, depth=5, top_k=10)


@dataclass(frozen=True)
class ModelChoice:
    """Which pair to load, where, and with what tree.

    Attributes:
        base_model_path: path, hub id, alias or None (the embedded pair).
        ea_model_path: path, hub id or None.
        dtype: one of ``DTYPES``.
        device: torch device name; None is the best of the machine.
        load_in_8bit: quantise the base model.
        gpus: GPUs of one model.
        max_gpu_memory: of each of them, None is all.
        total_token: of the tree; None takes the tuned or the default value, as for the next two.
        depth: of the tree.
        top_k: of the tree.
    """

    base_model_path: str | None
    ea_model_path: str | None
    dtype: str
    device: str | None
    load_in_8bit: bool
    gpus: int
    max_gpu_memory: str | None
    total_token: int | None
    depth: int | None
    top_k: int | None

    def tree_arguments(self, device: str) -> tuple[int, int, int]:
        """``total_token, depth, top_k``: given, else tuned for the head and the device, else the default."""
        _, head = assets.resolve_pair(self.base_model_path, self.ea_model_path)
        tuned = tuned_tree(local_folder(head, "the draft head"), device) or DEFAULT_TREE
        return (
            tuned.total_token if self.total_token is None else self.total_token,
            tuned.depth if self.depth is None else self.depth,
            tuned.top_k if self.top_k is None else self.top_k,
        )


def tuned_tree(head: Path, device: str) -> TreeShape | None:
    """The tree that a head's folder carries for a kind of device (``cpu``, ``cuda``, ``mps``), if any.

    Raises:
        InputError: the folder's ``tree.json`` cannot be understood.
    """
    file = head / TREE_FILE
    if not file.is_file():
        return None
    try:
        shapes = json.loads(file.read_text(encoding="utf-8"))
        return TreeShape(**shapes[device]) if device in shapes else None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot understand {file}: {error}") from error


def load(choice: ModelChoice) -> EaModel:
    """Load the pair.

    Raises:
        InputError: see ``EaModel.from_pretrained``; also a device or a package that is not there.
    """
    device = choice.device or best_device()
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: this machine (or this build of torch) has no CUDA")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {device}: this machine has no MPS")
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device must be cpu, cuda, cuda:N or mps, not {device}")
    total_token, depth, top_k = choice.tree_arguments(kind)
    kwargs: dict[str, Any] = {"dtype": choice.dtype if choice.dtype == "auto" else getattr(torch, choice.dtype)}
    kwargs["device_map"] = {"": device}
    if kind == "cuda" and (choice.gpus > 1 or choice.max_gpu_memory):
        kwargs["device_map"] = "auto"
        if choice.max_gpu_memory:
            kwargs["max_memory"] = dict.fromkeys(range(choice.gpus), choice.max_gpu_memory)
    if choice.load_in_8bit:
        kwargs["quantization_config"] = _eight_bit(kind)
    return EaModel.from_pretrained(
        base_model_path=choice.base_model_path,
        ea_model_path=choice.ea_model_path,
        total_token=total_token,
        depth=depth,
        top_k=top_k,
        **kwargs,
    )


def _eight_bit(kind: str) -> object:
    if kind != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("--load-in-8bit needs a CUDA GPU and bitsandbytes (pip install bitsandbytes)")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)
