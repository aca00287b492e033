"""Loading EAGLE-3 heads: the tensors of every checkpoint layout, checked against the target before anything runs.

Layouts (see the READMEs of SafeAILab/EAGLE and vllm-project/speculators for the formats):
  official     ``midlayer.*`` keys;
  speculators  ``layers.0.*`` keys.
Weights are safetensors, or a pickle read with ``weights_only``; sharded or not.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eagle.drafters.eagle3.config import head_config, read_config
from eagle.drafters.eagle3.head import PROJECTIONS, Eagle3Head, HeadConfig
from eagle.errors import InputError
from eagle.folders import WEIGHT_NAMES, first_line, local_folder
from eagle.target.target import Target

# Left in some checkpoints by training or by old versions of transformers; no part of the head.
IGNORED_KEYS = frozenset({"verifier_norm.weight", "verifier_lm_head.weight", "midlayer.self_attn.rotary_emb.inv_freq"})
LM_HEAD, HIDDEN_NORM = "lm_head.weight", "midlayer.hidden_norm.weight"
LAYER = re.compile(r"layers\.(\d+)\.")
BIAS = re.compile(rf"midlayer\.(?:self_attn|mlp)\.({'|'.join(PROJECTIONS)})\.bias")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, on the host.

    Raises:
        InputError: no weights, an unreadable file, or a pickle that holds more than plain tensors.
    """
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_file(folder / name)
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise InputError(f"cannot read {index}: {error!r}") from error
            return {key: tensor for shard in shards for key, tensor in _read_file(folder / shard).items()}
    raise InputError(f"the draft head's folder {folder} has no weights: {' or '.join(WEIGHT_NAMES)}, sharded or not")


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} holds more than plain weights and is not loaded, since unpickling runs code; "
            "convert it to safetensors"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise InputError(f"cannot read the weights {file}: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{file} is no plain dictionary of tensors")
    return state


def load_head(path_or_id: str, target: Target, dtype: torch.dtype | None = None) -> Eagle3Head:
    """Load a head for a target, on the target's device.

    Args:
        path_or_id: local directory or hub id.
        target: the model to draft for; its ``feature_layers`` are set to those the head reads.
        dtype: of the head's weights, its own embedding table apart; None is the target's.

    Raises:
        InputError: anything about the files that does not fit; names the key and both shapes.
    """
    folder = local_folder(path_or_id, "the draft head")
    state = read_weights(folder)
    _refuse_several_layers(state)
    state = {_official_name(key): tensor for key, tensor in state.items()}
    state = {key: tensor for key, tensor in state.items() if key not in IGNORED_KEYS}
    # What the tensors say comes before the configuration, which is often copied from the target's.
    biases = {found[1] for key in state if (found := BIAS.fullmatch(key))}
    config = head_config(read_config(folder), target, biases)
    embedding = state.pop("embed_tokens.weight", None)
    d2t, t2d = state.pop("d2t", None), state.pop("t2d", None)
    d2t = _d2t(d2t, t2d, config)
    if LM_HEAD not in state and (rows := _rows_of_the_target(target, config, d2t)) is not None:
        state[LM_HEAD] = rows
    with torch.device("meta"):
        head = Eagle3Head(config)
    _check_keys(head, state)
    dtype = dtype or target.dtype
    head.load_state_dict({key: tensor.to(target.device, dtype) for key, tensor in state.items()}, assign=True)
    head.embedding = _embedding(embedding, config, target)
    head.d2t = d2t.to(target.device)
    target.feature_layers = config.feature_layers
    return head.requires_grad_(False).eval()


def _refuse_several_layers(state: dict[str, Tensor]) -> None:
    layers = {found[1] for key in state if (found := LAYER.match(key))}
    if len(layers) > 1:
        raise InputError(
            f"the draft head has {len(layers)} layers; EAGLE-3 heads of one layer are supported, and EAGLE-1/2 heads "
            "are not"
        )


def _official_name(key: str) -> str:
    return f"midlayer.{key.removeprefix('layers.0.')}" if key.startswith("layers.0.") else key


def _check_keys(head: Eagle3Head, state: dict[str, Tensor]) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in head.state_dict().items()}
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing:
        raise InputError(
            f"the draft head lacks the tensor {missing[0]!r} of shape {expected[missing[0]]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + (f"; it has the unknown tensor {unknown[0]!r}" if unknown else "")
            + ("; EAGLE-1/2 heads, which have none, are not supported" if HIDDEN_NORM in missing else "")
        )
    if unknown:
        raise InputError(
            f"the draft head has the unknown tensor {unknown[0]!r} of shape {tuple(state[unknown[0]].shape)}"
            + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
        )
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise InputError(
                f"the draft head's tensor {key!r} has shape {tuple(state[key].shape)}; "
                f"its configuration and this target need {shape}"
            )


def _embedding(own: Tensor | None, config: HeadConfig, target: Target) -> Tensor:
    """The head's own table where it differs from the target's, else the target's, which costs no memory."""
    table = target.embedding if own is None else own
    needed = (target.vocab_size, config.layer.hidden_size)
    if tuple(table.shape) != needed:
        whose = "the target's, since the head has none," if own is None else "the head's 'embed_tokens.weight'"
        raise InputError(f"the embedding table, {whose} has shape {tuple(table.shape)}; the head needs {needed}")
    shared = target.embedding.detach()
    if own is None:
        return shared
    own = own.to(target.device, target.dtype)
    return shared if torch.equal(own, shared) else own


def _says_nothing(d2t: Tensor) -> bool:
    """Whether a map of a whole vocabulary is the identity: as differences, or as the ids themselves."""
    return d2t.ndim == 1 and (not d2t.any() or torch.equal(d2t.long(), torch.arange(len(d2t))))


def _rows_of_the_target(target: Target, config: HeadConfig, d2t: Tensor) -> Tensor | None:
    """What a head without ``lm_head`` drafts with: the target's rows of its tokens; None: they do not fit."""
    output = target.model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or getattr(output, "bias", None) is not None:
        return None
    if tuple(weight.shape) != (target.vocab_size, config.layer.hidden_size):
        return None
    weight = weight.detach()
    if config.draft_vocab_size == target.vocab_size and not d2t.any():
        return weight
    return weight[(torch.arange(len(d2t)) + d2t).to(weight.device)]


def _d2t(d2t: Tensor | None, t2d: Tensor | None, config: HeadConfig) -> Tensor:
    """The vocabulary map, checked to be one-to-one into the target's vocabulary."""
    draft_size, target_size = config.draft_vocab_size, config.layer.vocab_size
    if draft_size == target_size and d2t is not None and _says_nothing(d2t):
        # Left there by a program that has such buffers whatever the size; 't2d' is then as it was allocated.
        d2t = None
    if d2t is None:
        if draft_size != target_size:
            raise InputError(
                f"the draft head lacks the tensor 'd2t', which maps its {draft_size} draft tokens to the "
                f"target's {target_size}"
            )
        return torch.zeros(draft_size, dtype=torch.int64)
    if tuple(d2t.shape) != (draft_size,):
        raise InputError(
            f"the draft head's tensor 'd2t' has shape {tuple(d2t.shape)}; its configuration needs {(draft_size,)}"
        )
    mapped = torch.arange(draft_size) + d2t.long()
    if mapped.min() < 0 or mapped.max() >= target_size or len(mapped.unique()) != draft_size:
        raise InputError(
            f"the draft head's 'd2t' does not map its {draft_size} draft tokens one-to-one into the "
            f"target's {target_size}"
        )
    if t2d is not None:
        if tuple(t2d.shape) != (target_size,):
            raise InputError(
                f"the draft head's tensor 't2d' has shape {tuple(t2d.shape)}; this target needs {(target_size,)}"
            )
        if int(t2d.bool().sum()) != draft_size or not t2d.bool()[mapped].all():
            raise InputError("the draft head's 't2d' marks other tokens than its 'd2t' maps to")
    return d2t.long()
