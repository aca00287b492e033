"""Writing EAGLE-3 heads, in the official layout and in the one of vLLM's ``speculators``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from eagle.drafters.eagle3.config import FLAGS
from eagle.drafters.eagle3.head import ATTENTION, MLP_PARTS, Eagle3Head, HeadConfig
from eagle.folders import CONFIG_NAME, WEIGHT_NAMES
from eagle.target.target import Target

OFFICIAL, SPECULATORS = LAYOUTS = ("official", "speculators")


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
    raw = _official(config) if layout == OFFICIAL else _speculators(config, target, verifier)
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    state = {key: tensor.to("cpu", dtype) for key, tensor in head.state_dict().items()}
    state |= _absent_biases(head, dtype)
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
        # Copies: two tensors of a head may be one table of the target.
        save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, folder / WEIGHT_NAMES[0])
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _official(config: HeadConfig) -> dict[str, Any]:
    """The flat configuration.

    What its readers make of it (``tests/model/test_head_writing.py`` has the list): a ``target_hidden_size`` makes the
    original EAGLE code draft with random embeddings, so it is only there where a head cannot do without; absent, its
    ``bias`` means true and its ``rope_theta`` 10,000; vLLM reads the hidden states at the top level and counts them as
    this package does, SpecForge and SGLang read them nested and count the outputs of layers.
    """
    layer = _layer_fields(config)
    other_width = config.target_hidden_size != config.layer.hidden_size
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **layer,
        "bias": layer["attention_bias"],
        "draft_vocab_size": config.draft_vocab_size,
        **({"target_hidden_size": config.target_hidden_size} if other_width else {}),
        "eagle_aux_hidden_state_layer_ids": list(config.feature_layers),
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [entry - 1 for entry in config.feature_layers]},
        **{flag: True for flag in FLAGS if getattr(config, flag)},
    }


def _speculators(config: HeadConfig, target: Target, verifier: str | None) -> dict[str, Any]:
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1}],
            "verifier": {"name_or_path": verifier, "architectures": [type(target.model).__name__]},
        },
        "transformer_layer_config": _layer_fields(config),
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        "eagle_aux_hidden_state_layer_ids": list(config.feature_layers),
        "tie_word_embeddings": False,
        **{flag: getattr(config, flag) for flag in FLAGS},
    }


def _absent_biases(head: Eagle3Head, dtype: torch.dtype) -> dict[str, Tensor]:
    """Zeros for projections without a bias beside one with: other readers have all of a block's, or none."""
    biases = head.config.biases
    zeros = {}
    for block, names in (("self_attn", ATTENTION), ("mlp", MLP_PARTS)):
        for name in set(names) - biases if biases.intersection(names) else ():
            rows = head.get_parameter(f"midlayer.{block}.{name}.weight").shape[0]
            zeros[f"midlayer.{block}.{name}.bias"] = torch.zeros(rows, dtype=dtype)
    return zeros


def _layer_fields(config: HeadConfig) -> dict[str, Any]:
    """The layer's configuration in names that all readers of such heads know; RoPE as it was called before 5.0."""
    layer = config.layer
    names = (
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    )
    fields = {"model_type": "llama", **{name: getattr(layer, name) for name in names}}
    fields["attention_bias"] = not config.biases.isdisjoint(ATTENTION)
    fields["mlp_bias"] = not config.biases.isdisjoint(MLP_PARTS)
    fields["rope_theta"] = layer.rope_parameters["rope_theta"]
    return fields | {"rope_scaling": _rope_scaling(layer.rope_parameters)}


def _rope_scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """In the words of before 5.0; the original EAGLE code knows linear scaling, by exactly these two."""
    kind = rope["rope_type"]
    if kind == "default":
        return None
    if kind == "linear":
        return {"type": kind, "factor": float(rope["factor"])}
    return {key: value for key, value in rope.items() if key != "rope_theta"}
