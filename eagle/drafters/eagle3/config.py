"""The configuration of an EAGLE-3 head, read from every layout and checked against the target.

Layouts (see the READMEs of SafeAILab/EAGLE and vllm-project/speculators for the formats):
  official     a flat Llama configuration with ``draft_vocab_size``;
  speculators  ``transformer_layer_config`` nested in a ``speculators_model_type: eagle3`` one.
"""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.drafters.eagle3.head import HeadConfig
from eagle.errors import InputError
from eagle.folders import CONFIG_NAME, first_line
from eagle.target.target import Target

FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# Kinds of RoPE that turn a position by the same angles however long the text is: a head's tables are made once.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
MROPE, MROPE_KEYS = "mrope", ("mrope_section", "mrope_interleaved")
# What the tensors say better, and what one layer has no use for: configurations of heads are copied from targets, and
# some have kept the number of their layers.
NOT_TAKEN = ("model_type", "dtype", "torch_dtype", "num_hidden_layers", "layer_types", "attention_bias", "mlp_bias")


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


def head_config(raw: dict[str, Any], target: Target, biases: Set[str] = frozenset()) -> HeadConfig:
    """The shape of the head, checked against the target.

    Args:
        raw: the head's ``config.json``.
        target: the model it is to draft for.
        biases: projections of the layer that have one, by the head's tensors.

    Raises:
        InputError: a head of another kind, for another target, or with a switch that is not supported.
    """
    kind = raw.get("speculators_model_type")
    if kind not in (None, "eagle3"):
        raise InputError(f"the draft head is a {kind!r} speculator; only 'eagle3' is supported")
    nested = _mapping(raw, "eagle_config")
    flat = _mapping(raw, "transformer_layer_config") if kind else raw
    _refuse_unsupported(raw, flat)
    layer = _layer(flat)
    target_hidden_size = raw.get("target_hidden_size") or layer.hidden_size
    _must_equal("hidden size", target_hidden_size, target.config.hidden_size)
    _must_equal("vocabulary size", layer.vocab_size, target.vocab_size)
    draft_vocab_size = raw.get("draft_vocab_size") or layer.vocab_size
    if not isinstance(draft_vocab_size, int) or not 1 <= draft_vocab_size <= layer.vocab_size:
        raise InputError(
            f"the draft head's {CONFIG_NAME} has draft_vocab_size={draft_vocab_size!r}; it must be a number from 1 to "
            f"its vocab_size, {layer.vocab_size}"
        )
    return HeadConfig(
        layer=layer,
        draft_vocab_size=draft_vocab_size,
        target_hidden_size=target_hidden_size,
        feature_layers=_feature_layers(raw, nested, int(target.config.num_hidden_layers)),
        biases=frozenset(biases),
        **{flag: bool(nested.get(flag, raw.get(flag, False))) for flag in FLAGS},
    )


def _mapping(raw: dict[str, Any], name: str) -> dict[str, Any]:
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"the draft head's {CONFIG_NAME} has {name}={value!r}; it must be a JSON object")
    return value


def _refuse_unsupported(raw: dict[str, Any], flat: dict[str, Any]) -> None:
    if "sliding_attention" in (flat.get("layer_types") or []):
        raise InputError("the draft head uses sliding-window attention (layer_types), which is not supported")
    if raw.get("quantization_config"):
        raise InputError("the draft head is quantised (quantization_config), which is not supported")


def _layer(flat: dict[str, Any]) -> LlamaConfig:
    """The decoder layer of a flat configuration, checked as far as building one would fail."""
    taken = {key: value for key, value in flat.items() if key not in NOT_TAKEN}
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(rope := taken.get(name), dict):
            taken[name] = _for_text(rope)
    try:
        layer = LlamaConfig(**taken, num_hidden_layers=1)
    except Exception as error:  # validation errors of many types, all of them about the file's contents
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"the draft head's {CONFIG_NAME} is no valid Llama configuration: {reason}") from error
    if layer.hidden_act not in ACT2FN:
        raise InputError(f"the draft head's {CONFIG_NAME} has hidden_act={layer.hidden_act!r}, which is not known")
    if layer.num_attention_heads % layer.num_key_value_heads:
        raise InputError(
            f"the draft head's {CONFIG_NAME} has num_attention_heads={layer.num_attention_heads}, which is no multiple "
            f"of num_key_value_heads={layer.num_key_value_heads}"
        )
    _check_rope(layer)
    return layer


def _for_text(rope: dict[str, Any]) -> dict[str, Any]:
    """RoPE of a multimodal model as it is for text: there a token's three positions are one, and so is the rotation."""
    plain = {key: value for key, value in rope.items() if key not in ("type", "rope_type", *MROPE_KEYS)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return plain | {"rope_type": "default" if kind == MROPE else kind}


def _check_rope(layer: LlamaConfig) -> None:
    kind = layer.rope_parameters.get("rope_type")
    if kind not in STATIC_ROPE:
        raise InputError(
            f"the draft head's {CONFIG_NAME} has RoPE of the type {kind!r}; supported are {', '.join(STATIC_ROPE)} and "
            f"{MROPE} (others change with the length of the text, or are unknown)"
        )
    try:
        pairs = len(LlamaRotaryEmbedding(layer).inv_freq)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(
            f"the draft head's {CONFIG_NAME} has RoPE of the type {kind!r} without what that needs: {first_line(error)}"
        ) from error
    if 2 * pairs != layer.head_dim:
        raise InputError(
            f"the draft head's RoPE turns {2 * pairs} of the {layer.head_dim} entries of a head "
            "(partial_rotary_factor), which is not supported"
        )


def _feature_layers(raw: dict[str, Any], nested: dict[str, Any], layers: int) -> tuple[int, ...]:
    """The hidden states a head reads, of a target of so many layers."""
    chosen: Any
    if named := raw.get("eagle_aux_hidden_state_layer_ids"):
        chosen = named
    elif counted := nested.get("eagle_aux_hidden_state_layer_ids"):
        # This convention counts the outputs of layers, and hidden_states[0] is the embeddings.
        chosen = [entry + 1 if isinstance(entry, int) else entry for entry in _listed(counted)]
    else:
        chosen = default_feature_layers(layers)
    if not all(isinstance(entry, int) and 0 <= entry <= layers for entry in _listed(chosen)):
        raise InputError(
            f"the draft head reads the hidden states {list(chosen)} of its target, but this target has "
            f"{layers} layers (entries 0 to {layers}); it was made for another model"
        )
    return tuple(chosen)


def _listed(ids: Any) -> Any:
    if not isinstance(ids, list | tuple):
        raise InputError(
            f"the draft head's {CONFIG_NAME} has eagle_aux_hidden_state_layer_ids={ids!r}; it must be a list"
        )
    return ids


def _must_equal(what: str, of_head: int, of_target: int) -> None:
    if of_head != of_target:
        raise InputError(
            f"the draft head was made for a target of {what} {of_head}, but this target's is {of_target}; "
            "head and base model do not belong together"
        )
