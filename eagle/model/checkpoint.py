"""Reading and writing EAGLE-3 heads: every checkpoint layout, checked against the target before anything runs.

Layouts (see the READMEs of SafeAILab/EAGLE and vllm-project/speculators for the formats):
  official     ``midlayer.*`` keys, a flat Llama configuration with ``draft_vocab_size``;
  speculators  ``layers.0.*`` keys, ``transformer_layer_config`` nested in a ``speculators_model_type: eagle3`` one.
Weights are safetensors, or a pickle read with ``weights_only``; sharded or not.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

from eagle.errors import InputError
from eagle.model.head import Eagle3Head, HeadConfig
from eagle.model.target import Target

CONFIG_NAME = "config.json"
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
OFFICIAL, SPECULATORS = LAYOUTS = ("official", "speculators")
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# Left in some checkpoints by training or by old versions of transformers; no part of the head.
IGNORED_KEYS = frozenset({"verifier_norm.weight", "verifier_lm_head.weight", "midlayer.self_attn.rotary_emb.inv_freq"})


def local_folder(path_or_id: str, what: str) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub id downloaded to the hub's cache.

    Args:
        path_or_id: local directory or hub id.
        what: how to name it in an error ("the draft head").

    Raises:
        InputError: it is neither, or could not be fetched.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{what}: {path_or_id} is a file; give the directory that holds {CONFIG_NAME} and the weights")
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{what}: {path_or_id} is no local directory, and the hub has no such model or cannot be reached ({reason})"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The head's ``config.json``.

    Raises:
        InputError: it is missing or is not a JSON object.
    """
    file = folder / CONFIG_NAME
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"the draft head's folder {folder} has no {CONFIG_NAME}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} holds no JSON object")
    return config


def default_feature_layers(layers: int) -> tuple[int, ...]:
    """The hidden states EAGLE-3 reads from a target of so many layers, unless the head's configuration names others."""
    return (2, layers // 2, layers - 3)


def head_config(raw: dict[str, Any], target: Target) -> HeadConfig:
    """The shape of the head, checked against the target.

    Args:
        raw: the head's ``config.json``.
        target: the model it is to draft for.

    Raises:
        InputError: a head of another kind, for another target, or with a switch that is not supported.
    """
    kind = raw.get("speculators_model_type")
    if kind not in (None, "eagle3"):
        raise InputError(f"the draft head is a {kind!r} speculator; only 'eagle3' is supported")
    nested = raw.get("eagle_config") or {}
    flat = raw.get("transformer_layer_config", {}) if kind else raw
    try:
        layer = LlamaConfig(
            **{key: value for key, value in flat.items() if key not in ("model_type", "dtype", "torch_dtype")}
        )
    except Exception as error:  # validation errors of many types, all of them about the file's contents
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"the draft head's {CONFIG_NAME} is no valid Llama configuration: {reason}") from error
    _refuse_unsupported(raw, flat)
    layers = int(target.config.num_hidden_layers)
    named = raw.get("eagle_aux_hidden_state_layer_ids")
    if named:
        feature_layers = tuple(named)
    elif nested.get("eagle_aux_hidden_state_layer_ids"):
        # This convention counts the outputs of layers, and hidden_states[0] is the embeddings.
        feature_layers = tuple(layer_id + 1 for layer_id in nested["eagle_aux_hidden_state_layer_ids"])
    else:
        feature_layers = default_feature_layers(layers)
    if not all(isinstance(entry, int) and 0 <= entry <= layers for entry in feature_layers):
        raise InputError(
            f"the draft head reads the hidden states {list(feature_layers)} of its target, but this target has "
            f"{layers} layers (entries 0 to {layers}); it was made for another model"
        )
    target_hidden_size = raw.get("target_hidden_size") or layer.hidden_size
    _must_equal("hidden size", target_hidden_size, target.config.hidden_size)
    _must_equal("vocabulary size", layer.vocab_size, target.vocab_size)
    return HeadConfig(
        layer=layer,
        draft_vocab_size=raw.get("draft_vocab_size") or layer.vocab_size,
        target_hidden_size=target_hidden_size,
        feature_layers=feature_layers,
        **{flag: bool(nested.get(flag, raw.get(flag, False))) for flag in FLAGS},
    )


def _refuse_unsupported(raw: dict[str, Any], flat: dict[str, Any]) -> None:
    if flat.get("num_hidden_layers", 1) != 1:
        raise InputError(
            f"the draft head has num_hidden_layers={flat['num_hidden_layers']}; EAGLE-3 heads of one layer are "
            "supported, and EAGLE-1/2 heads are not"
        )
    if "sliding_attention" in (flat.get("layer_types") or []):
        raise InputError("the draft head uses sliding-window attention (layer_types), which is not supported")
    if raw.get("quantization_config"):
        raise InputError("the draft head is quantised (quantization_config), which is not supported")


def _must_equal(what: str, of_head: int, of_target: int) -> None:
    if of_head != of_target:
        raise InputError(
            f"the draft head was made for a target of {what} {of_head}, but this target's is {of_target}; "
            "head and base model do not belong together"
        )


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
        raise InputError(f"cannot read the weights {file}: {str(error).strip().splitlines()[0]}") from error
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
    config = head_config(read_config(folder), target)
    state = {_official_name(key): tensor for key, tensor in read_weights(folder).items()}
    state = {key: tensor for key, tensor in state.items() if key not in IGNORED_KEYS}
    embedding = state.pop("embed_tokens.weight", None)
    d2t, t2d = state.pop("d2t", None), state.pop("t2d", None)
    with torch.device("meta"):
        head = Eagle3Head(config)
    _check_keys(head, state)
    dtype = dtype or target.dtype
    head.load_state_dict({key: tensor.to(target.device, dtype) for key, tensor in state.items()}, assign=True)
    head.embedding = _embedding(embedding, config, target)
    head.d2t = _d2t(d2t, t2d, config).to(target.device)
    target.feature_layers = config.feature_layers
    return head.requires_grad_(False).eval()


def write_head(
    head: Eagle3Head, target: Target, folder: Path, layout: str, dtype: torch.dtype, verifier: str | None = None
) -> None:
    """Write a head's configuration and weights, as safetensors, into an existing folder.

    Args:
        head: the head.
        target: the model it drafts for.
        folder: receives ``config.json`` and ``model.safetensors``.
        layout: one of ``LAYOUTS``.
        dtype: of the weights.
        verifier: path or hub id of the target, which the speculators layout names.

    Raises:
        OSError: the disk refused.
    """
    config = head.config
    layer, flags = _layer_fields(config.layer), {flag: getattr(config, flag) for flag in FLAGS}
    name = str(dtype).removeprefix("torch.")
    raw: dict[str, Any]
    if layout == OFFICIAL:
        raw = {
            "architectures": ["LlamaForCausalLMEagle3"],
            **layer,
            "draft_vocab_size": config.draft_vocab_size,
            "target_hidden_size": config.target_hidden_size,
            "torch_dtype": name,
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": [entry - 1 for entry in config.feature_layers]},
            **{flag: True for flag, on in flags.items() if on},
        }
    else:
        raw = {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1}],
                "verifier": {"name_or_path": verifier, "architectures": [type(target.model).__name__]},
            },
            "transformer_layer_config": layer,
            "draft_vocab_size": config.draft_vocab_size,
            "target_hidden_size": config.target_hidden_size,
            "eagle_aux_hidden_state_layer_ids": list(config.feature_layers),
            "tie_word_embeddings": False,
            "torch_dtype": name,
            **flags,
        }
    state = {key: tensor.to("cpu", dtype) for key, tensor in head.state_dict().items()}
    if layout == SPECULATORS:
        state = {key.replace("midlayer.", "layers.0.", 1): tensor for key, tensor in state.items()}
    own = head.embedding.data_ptr() != target.embedding.data_ptr()
    # The speculators package (0.9) takes whatever memory holds for an absent table, if that is no NaN.
    if own or layout == SPECULATORS:
        state["embed_tokens.weight"] = head.embedding.to("cpu", dtype)
    if config.draft_vocab_size != target.vocab_size:
        d2t = head.d2t.cpu()
        state["d2t"] = d2t
        state["t2d"] = torch.zeros(target.vocab_size, dtype=torch.bool)
        state["t2d"][torch.arange(len(d2t)) + d2t] = True
    (folder / CONFIG_NAME).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    try:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHT_NAMES[0])
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _layer_fields(layer: LlamaConfig) -> dict[str, Any]:
    """The layer's configuration in names that all readers of such heads know; RoPE as it was called before 5.0."""
    names = (
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "attention_bias",
        "mlp_bias",
        "rms_norm_eps",
        "max_position_embeddings",
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    )
    scaling = dict(layer.rope_parameters)
    theta = scaling.pop("rope_theta")
    fields = {"model_type": "llama", **{name: getattr(layer, name) for name in names}, "rope_theta": theta}
    return fields if scaling.get("rope_type", "default") == "default" else fields | {"rope_scaling": scaling}


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


def _d2t(d2t: Tensor | None, t2d: Tensor | None, config: HeadConfig) -> Tensor:
    """The vocabulary map, checked to be one-to-one into the target's vocabulary."""
    draft_size, target_size = config.draft_vocab_size, config.layer.vocab_size
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
