"""Files of a sorted draft: its layers, and of the target's ends only what is its own.

A folder holds ``config.json`` and ``model.safetensors``: ``layers.N...`` and ``norm...`` as the target's own modules
name them, ``draft_ids``, and with ends of its own ``embed_tokens.weight`` and ``lm_head.weight``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from eagle.drafters.sorted.model import SortedModel
from eagle.errors import InputError
from eagle.folders import CONFIG_NAME, WEIGHT_NAMES, local_folder
from eagle.target.target import Target

FORMAT, VERSION = "eagle-sorted", 1
EMBEDDING, OUTPUT, DRAFT_IDS = "embed_tokens.weight", "lm_head.weight", "draft_ids"


@dataclass(frozen=True)
class SortedConfig:
    """What a sorted draft is.

    Attributes:
        exits: after how many of the target's layers; the last one is after all it has.
        draft_vocab_size: tokens it drafts.
        own_ends: whether embeddings and output layer are its own, not the target's.
        model_type: of the target.
        hidden_size: likewise.
        vocab_size: likewise.
    """

    exits: tuple[int, ...]
    draft_vocab_size: int
    own_ends: bool
    model_type: str
    hidden_size: int
    vocab_size: int

    @classmethod
    def for_target(cls, target: Target, exits: tuple[int, ...], draft_vocab_size: int, own_ends: bool) -> SortedConfig:
        """That of a draft for a target."""
        config = target.config
        return cls(exits, draft_vocab_size, own_ends, config.model_type, int(config.hidden_size), target.vocab_size)


def first_layers(
    target: PreTrainedModel, layers: int, dtype: torch.dtype | None = None, filled: bool = True
) -> PreTrainedModel:
    """A stock model with the first of a target's layers; its embeddings and output layer are the target's own modules.

    Args:
        target: any whose layers stock modules name ``layers``.
        layers: how many.
        dtype: of the layers and the norm; None: the target's.
        filled: with the target's weights, not with random ones.

    Raises:
        InputError: fewer than one, or not fewer than the target has; or it names its parts otherwise.
    """
    whole = int(target.config.get_text_config(decoder=True).num_hidden_layers)
    if not 0 < layers < whole:
        raise InputError(f"--layers must be 1 to {whole - 1}, not {layers}")
    config = type(target.config).from_dict(target.config.to_dict() | {"num_hidden_layers": layers})
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    model = AutoModelForCausalLM.from_config(config, dtype=dtype or target.dtype).to(target.device)
    base, of_target = model.base_model, target.base_model
    if not all(hasattr(of_target, name) for name in ("layers", "norm")):
        raise InputError(f"the layers of {type(target).__name__} cannot be run one by one, see docs/drafters.md")
    if filled:
        for mine, theirs in zip(base.layers, of_target.layers[:layers], strict=True):
            mine.load_state_dict(theirs.state_dict())
        base.norm.load_state_dict(of_target.norm.state_dict())
    model.set_input_embeddings(target.get_input_embeddings())
    model.set_output_embeddings(target.get_output_embeddings())
    model.generation_config = target.generation_config
    return model.eval()


def _first(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if int(name.partition(".")[0]) < layers}


def write_sorted(
    folder: Path, model: PreTrainedModel, config: SortedConfig, draft_ids: Tensor, dtype: torch.dtype
) -> None:
    """Write a sorted draft into an existing folder.

    Args:
        folder: receives ``config.json`` and ``model.safetensors``.
        model: of ``first_layers``, trained.
        config: what it is.
        draft_ids: (D,) int64 target ids.
        dtype: of the weights.

    Raises:
        OSError: the disk refused.
    """
    base = model.base_model
    state = {f"layers.{name}": tensor for name, tensor in base.layers.state_dict().items()}
    state |= {f"norm.{name}": tensor for name, tensor in base.norm.state_dict().items()}
    if config.own_ends:
        state |= {EMBEDDING: model.get_input_embeddings().weight, OUTPUT: model.get_output_embeddings().weight}
    tensors = {name: tensor.detach().to("cpu", dtype).clone().contiguous() for name, tensor in state.items()}
    head = {"format": FORMAT, "version": VERSION, "dtype": str(dtype).removeprefix("torch.")}
    (folder / CONFIG_NAME).write_text(json.dumps(head | asdict(config), indent=2) + "\n", encoding="utf-8")
    try:
        save_file({**tensors, DRAFT_IDS: draft_ids.cpu().clone()}, folder / WEIGHT_NAMES[0])
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_into(folder: Path, model: PreTrainedModel, own_ends: bool) -> Tensor:
    """Give a model of ``first_layers`` the weights of a folder; returns its (D,) draft ids.

    Raises:
        OSError: it cannot be read.
        KeyError: something is missing.
        RuntimeError: something does not fit.
    """
    try:
        state = load_file(folder / WEIGHT_NAMES[0])
    except SafetensorError as error:
        raise OSError(str(error)) from error
    base = model.base_model
    layers = {name.removeprefix("layers."): tensor for name, tensor in state.items() if name.startswith("layers.")}
    base.layers.load_state_dict(_first(layers, len(base.layers)))
    base.norm.load_state_dict({name.removeprefix("norm."): t for name, t in state.items() if name.startswith("norm.")})
    if own_ends:
        for name, module in ((EMBEDDING, model.get_input_embeddings()), (OUTPUT, model.get_output_embeddings())):
            module.load_state_dict({"weight": state[name]})
    return state[DRAFT_IDS]


def load_sorted(
    path_or_id: str, target: Target, numbers: Sequence[int] | None = None, quantize: str | None = None
) -> SortedModel:
    """Load a sorted draft for a target.

    Args:
        path_or_id: local directory or hub id.
        target: the model it drafts for.
        numbers: of the exits to use, counted from 1, ascending; None: all.
        quantize: as the target, see ``int8.prepare_draft_weights``.

    Raises:
        InputError: it cannot be read, is for another target or of another version, or has no such exit.
    """
    folder = local_folder(path_or_id, "the sorted draft")
    config = read_config(folder)
    made = SortedConfig.for_target(target, config.exits, config.draft_vocab_size, config.own_ends)
    for name in ("model_type", "hidden_size", "vocab_size"):
        if getattr(made, name) != getattr(config, name):
            raise InputError(
                f"{folder} was made for a target with {name} {getattr(config, name)}, this one has "
                f"{getattr(made, name)}"
            )
    if numbers is not None and not 1 <= numbers[-1] <= len(config.exits):
        raise InputError(f"--exit must be 1 to {len(config.exits)} with {folder}, not {numbers[-1]}")
    exits = config.exits if numbers is None else tuple(config.exits[number - 1] for number in numbers)
    model = first_layers(target.model, exits[-1], filled=False)
    if config.own_ends:
        # Modules of their own, to be filled.
        sizes = target.embedding.shape
        like: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
        model.set_input_embeddings(nn.Embedding(*sizes, **like))
        model.set_output_embeddings(nn.Linear(sizes[1], sizes[0], bias=False, **like))
    try:
        draft_ids = read_into(folder, model, config.own_ends)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load the sorted draft {folder}: {reason}") from error
    if draft_ids.numel() != config.draft_vocab_size or int(draft_ids.max()) >= target.vocab_size:
        raise InputError(f"{folder}: its draft ids are not {config.draft_vocab_size} tokens of this target")
    draft = SortedModel(model.requires_grad_(False), exits, draft_ids.to(target.device))
    draft.prepare(quantize)
    return draft


def read_config(folder: Path) -> SortedConfig:
    """What the draft in a folder is.

    Raises:
        InputError: there is none, or of another version.
    """
    file = folder / CONFIG_NAME
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw.get("format") != FORMAT:
            raise InputError(f"{folder} holds no sorted draft; python -m eagle.train sorted trains one")
        if raw.get("version") != VERSION:
            raise InputError(f"{folder} is a sorted draft of version {raw.get('version')}, this program's is {VERSION}")
        known: dict[str, Any] = {name: raw[name] for name in SortedConfig.__dataclass_fields__}
        return SortedConfig(**known | {"exits": tuple(raw["exits"])})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"cannot understand {file}: {why}") from error
