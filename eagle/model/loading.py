"""Loading the pair that a program's arguments name."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from eagle import assets
from eagle.decoding.method import DEFAULT_SAMPLING
from eagle.decoding.stored_trees import NO_TREES, StoredTrees
from eagle.devices import best_device
from eagle.errors import InputError
from eagle.folders import local_folder
from eagle.model.ea_model import EaModel
from eagle.target.processors import processors_of
from eagle.tree.shape import AUTO_TOTAL_TOKEN, DETERMINISTIC, HYBRID, Sampling, TreeShape
from eagle.tuning import size as tune

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
SAMPLING = tuple(field.name for field in fields(Sampling))


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
        total_token: of the tree; None takes the stored or the default value, as for the next two.
        depth: of the tree.
        top_k: of the tree.
        kind: of the tree, one of ``TREES``.
        temperature: of the text; the trees stored with a head depend on it.
        sampling: fields of ``Sampling`` that differ from the stored or the default values; for a hybrid tree.
    """

    base_model_path: str | None = None
    ea_model_path: str | None = None
    dtype: str = "auto"
    device: str | None = None
    load_in_8bit: bool = False
    gpus: int = 1
    max_gpu_memory: str | None = None
    total_token: int | None = None
    depth: int | None = None
    top_k: int | None = None
    kind: str = DETERMINISTIC
    temperature: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def tree_arguments(self, device: str) -> dict[str, Any]:
        """Those of ``EaModel.from_pretrained``: given, else stored with the head for the device, else the default."""
        if self.sampling and self.kind != HYBRID:
            raise InputError(f"--{next(iter(self.sampling)).replace('_', '-')} is for hybrid trees (--hsd)")
        stored = self.stored_trees(device).at(self.temperature, self.kind)
        given = {
            name: value for name in ("total_token", "depth", "top_k") if (value := getattr(self, name)) is not None
        }
        sampling = replace(stored.sampling or DEFAULT_SAMPLING, **self.sampling) if self.kind == HYBRID else None
        return (
            {"total_token": stored.total_token, "depth": stored.depth, "top_k": stored.top_k}
            | given
            | {"sampling": sampling}
        )

    def stored_trees(self, device: str) -> StoredTrees:
        """The trees stored with the head for a kind of device."""
        _, head = assets.resolve_pair(self.base_model_path, self.ea_model_path)
        return StoredTrees.read(local_folder(head, "the draft head"), device)


def add_pair_arguments(parse: argparse._ActionsContainer) -> None:
    """The arguments that name a pair, for a parser or a group of one."""
    parse.add_argument("--base-model-path", help="directory, hub id or embedded alias; neither path: the embedded pair")
    parse.add_argument("--ea-model-path", help="directory or hub id of the draft head")
    parse.add_argument("--dtype", default="auto", choices=DTYPES, help="of the weights; auto is the checkpoint's own")
    parse.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")


def pair_of(args: argparse.Namespace) -> ModelChoice:
    """The pair that those arguments name."""
    return ModelChoice(args.base_model_path, args.ea_model_path, args.dtype, args.device)


def existing_device(device: str | None) -> str:
    """The name of a device, None being the best there is.

    Raises:
        InputError: this machine has no such device.
    """
    device = device or best_device()
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: this machine (or this build of torch) has no CUDA")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {device}: this machine has no MPS")
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device must be cpu, cuda, cuda:N or mps, not {device}")
    return device


def load(choice: ModelChoice) -> EaModel:
    """Load the pair, with the tree of the choice.

    Raises:
        InputError: see ``EaModel.from_pretrained``; also a device or a package that is not there.
    """
    return load_with_trees([choice])[0]


def load_with_trees(choices: Sequence[ModelChoice]) -> tuple[EaModel, list[TreeShape]]:
    """Load a pair once, for several trees.

    Args:
        choices: of one pair; they differ in the tree only.

    Returns:
        The model, whose own tree is that of the first choice, and the tree of each choice. A ``total_token`` of -1 is
        measured on this machine, once for each kind of tree.

    Raises:
        InputError: as ``load``, or the model's ``generation_config`` cannot be honoured.
    """
    pair = choices[0]
    device = existing_device(pair.device)
    kind = device.partition(":")[0]
    shapes = [_bounds(choice.tree_arguments(kind)) for choice in choices]
    kwargs: dict[str, Any] = {"dtype": pair.dtype if pair.dtype == "auto" else getattr(torch, pair.dtype)}
    kwargs["device_map"] = {"": device}
    if kind == "cuda" and (pair.gpus > 1 or pair.max_gpu_memory):
        kwargs["device_map"] = "auto"
        if pair.max_gpu_memory:
            kwargs["max_memory"] = dict.fromkeys(range(pair.gpus), pair.max_gpu_memory)
    if pair.load_in_8bit:
        kwargs["quantization_config"] = _eight_bit(kind)
    model = EaModel.from_pretrained(base_model_path=pair.base_model_path, ea_model_path=pair.ea_model_path, **kwargs)
    # Before anything is answered, not with the first prompt.
    processors_of(model.base_model, torch.zeros(1, 1, dtype=torch.int64, device=model.device), 2, model.stop_ids())
    to_measure = {
        shape for choice, shape in zip(choices, shapes, strict=True) if choice.total_token == AUTO_TOTAL_TOKEN
    }
    measured = {shape: tune.tuned_shape(model.target, model.ea_layer, shape) for shape in to_measure}
    trees = [
        measured[shape] if choice.total_token == AUTO_TOTAL_TOKEN else shape
        for choice, shape in zip(choices, shapes, strict=True)
    ]
    model.shape, model.trees = trees[0], NO_TREES
    return model, trees


def _bounds(tree: Mapping[str, Any]) -> TreeShape:
    """The shape that these arguments mean; where the size is to be measured, the largest that is tried."""
    size = tune.LARGEST if tree["total_token"] == AUTO_TOTAL_TOKEN else tree["total_token"]
    return TreeShape(**{**tree, "total_token": size})


def _eight_bit(kind: str) -> object:
    if kind != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("--load-in-8bit needs a CUDA GPU and bitsandbytes (pip install bitsandbytes)")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)
