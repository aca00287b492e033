"""The head that training starts from: its shape, and its weights from the target's last layer, a head, or at random.

The head's layer is a layer of the target with a wider input. Where the target names its parts as Llama does, the half
of the projections that reads the hidden state is the last layer's own, the half that reads the embedding is 0, ``fc``
passes the topmost feature through, and the final norm and the rows of ``lm_head`` are the target's. Such a head begins
as what the target itself would make of its topmost feature.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.config import FLAGS, default_feature_layers
from eagle.drafters.eagle3.head import ATTENTION, MLP_PARTS, Eagle3Head, HeadConfig
from eagle.errors import InputError
from eagle.target.target import Target
from eagle.train.vocab import DraftVocabulary

# Of random weights: what Llama-like models begin with.
SPREAD = 0.02
TARGET, RANDOM = INITIALS = ("target", "random")
DEFAULT_ROPE_THETA = 10000.0


def shape_for(
    target: Target, draft_vocab_size: int, feature_layers: tuple[int, ...] | None, flags: dict[str, bool]
) -> HeadConfig:
    """The shape of a head for a target: one of its own layers, drafting from some of its hidden states.

    Args:
        target: the model.
        draft_vocab_size: tokens the head can draft.
        feature_layers: entries of ``hidden_states``; None: EAGLE-3's.
        flags: switches of the speculators format that are on.

    Raises:
        InputError: feature layers the target does not have, or more draft tokens than it has tokens.
    """
    config, layers = target.config, int(target.config.num_hidden_layers)
    chosen = feature_layers or default_feature_layers(layers)
    if not all(0 <= entry <= layers for entry in chosen):
        raise InputError(
            f"feature_layers {list(chosen)} do not fit this target: its hidden states are 0 (the embeddings) to "
            f"{layers}"
        )
    if draft_vocab_size > target.vocab_size:
        raise InputError(
            f"the draft vocabulary has {draft_vocab_size} tokens, more than the target's {target.vocab_size}; "
            "it was made for another model"
        )
    heads = int(config.num_attention_heads)
    layer = LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rms_norm_eps=getattr(config, "rms_norm_eps", 1e-5),
        rope_theta=_rope_theta(target),
        max_position_embeddings=target.context_length or 2048,
        vocab_size=target.vocab_size,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=False,
    )
    return HeadConfig(layer, draft_vocab_size, int(config.hidden_size), tuple(chosen), biases=frozenset(), **flags)


def _rope_theta(target: Target) -> float:
    """The target's; of a target with several kinds of layers, that of full attention."""
    rope = getattr(target.config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta", DEFAULT_ROPE_THETA))


def new_head(
    target: Target, config: HeadConfig, vocabulary: DraftVocabulary, initial: str, seed: int
) -> tuple[Eagle3Head, list[str]]:
    """A head to train, in float32 (float64 for a float64 target) on the target's device.

    Args:
        target: the model; its ``feature_layers`` are set.
        config: the head's shape; of a head to go on from, its layer comes before this one's.
        vocabulary: what it can draft.
        initial: one of ``INITIALS``, or the folder or hub id of a head.
        seed: of the random weights.

    Returns:
        The head, and the names of parts that were to come from the target but are random, since it has none like them.

    Raises:
        InputError: there is no such head, it reads something else, or the vocabulary is another target's.
    """
    if len(vocabulary.t2d) != target.vocab_size:
        raise InputError(
            f"the draft vocabulary is of a target with {len(vocabulary.t2d)} tokens, this one has {target.vocab_size}"
        )
    wide = torch.float64 if target.dtype == torch.float64 else torch.float32
    other = None if initial in INITIALS else _other(initial, target, config, wide)
    # Weights go on in the layer they were trained in: with its RoPE and its epsilon.
    if other is not None:
        config = replace(config, layer=other.config.layer, biases=other.config.biases)
    head = Eagle3Head(config)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=SPREAD, generator=source)
    head = head.to(wide)
    left_random = [] if initial == RANDOM else _take_from(target, head, vocabulary.target_ids)
    if other is not None:
        left_random = []
        _go_on_from(other, head, vocabulary.target_ids)
    head = head.to(target.device)
    head.embedding = target.embedding.detach() if other is None else other.embedding
    head.d2t = vocabulary.d2t.to(target.device)
    target.feature_layers = config.feature_layers
    return head, left_random


def _other(path_or_id: str, target: Target, ours: HeadConfig, dtype: torch.dtype) -> Eagle3Head:
    """A head to go on from, checked to read what ours does."""
    if not Path(path_or_id).exists() and "/" not in path_or_id:
        raise InputError(f"initial must be {' or '.join(INITIALS)}, or name a head; there is no folder {path_or_id!r}")
    other = load_head(path_or_id, target, dtype)
    theirs = other.config
    flags = {flag: getattr(theirs, flag) for flag in FLAGS}
    if theirs.feature_layers != ours.feature_layers or flags != {flag: getattr(ours, flag) for flag in FLAGS}:
        raise InputError(
            f"the head {path_or_id} reads the hidden states {list(theirs.feature_layers)} of the target with {flags}; "
            "give the same --feature-layers and norms to go on from it"
        )
    return other


@torch.no_grad()
def _go_on_from(other: Eagle3Head, head: Eagle3Head, target_ids: Tensor) -> None:
    """Copy another head; what it could not draft keeps its row of ``lm_head``."""
    head.load_state_dict(other.state_dict() | {"lm_head.weight": head.lm_head.weight})
    row = torch.full((head.config.layer.vocab_size,), -1)
    row[other.target_ids.cpu()] = torch.arange(len(other.d2t))
    known = row[target_ids.cpu()]
    head.lm_head.weight[known >= 0] = other.lm_head.weight.to(head.lm_head.weight)[known[known >= 0]]


@torch.no_grad()
def _take_from(target: Target, head: Eagle3Head, target_ids: Tensor) -> list[str]:
    """Copy what fits; the names of what does not."""
    model, size = target.model, head.config.layer.hidden_size
    stack = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    inside = set(stack.modules())
    final_norms = [module for module in model.modules() if module not in inside and _is_rms_norm(module, size)]
    parts = dict(stack[-1].named_modules())
    layer = head.midlayer
    wanted: list[tuple[str, nn.Module, nn.Module | None]] = [
        *((name, getattr(layer.self_attn, name), parts.get(f"self_attn.{name}")) for name in ATTENTION),
        *((name, getattr(layer.mlp, name), parts.get(f"mlp.{name}")) for name in MLP_PARTS),
        ("input_layernorm", layer.hidden_norm, parts.get("input_layernorm")),
        ("post_attention_layernorm", layer.post_attention_layernorm, parts.get("post_attention_layernorm")),
        ("final norm", head.norm, final_norms[-1] if final_norms else None),
    ]
    left = [name for name, ours, theirs in wanted if theirs is None or not _copy(ours, theirs, size)]
    output = model.get_output_embeddings()
    if output is not None and output.weight.is_floating_point():
        head.lm_head.weight.copy_(output.weight[target_ids.to(output.weight.device)])
    else:
        left.append("lm_head")
    # Added to small random weights: the other features take part from the start.
    head.fc.weight[:, -size:] += torch.eye(size)
    return left


def _copy(ours: nn.Module, theirs: nn.Module, size: int) -> bool:
    """Copy a projection or a norm of the target; false if it is of another kind or shape."""
    weight = ours.get_parameter("weight")
    if isinstance(ours, nn.RMSNorm):
        if not _is_rms_norm(theirs, size):
            return False
        # What a norm does to a vector of ones is its scale, however the model stores it.
        of_theirs = theirs.get_parameter("weight")
        weight.copy_(theirs(torch.ones(1, size, dtype=of_theirs.dtype, device=of_theirs.device))[0])
        return True
    other = getattr(theirs, "weight", None)
    if not isinstance(other, Tensor) or other.ndim != 2 or not other.is_floating_point():
        return False
    # Attention reads the embedding in front of the hidden state; the rest of the layer reads one vector.
    read = weight[:, -other.shape[1] :]
    if read.shape != other.shape:
        return False
    weight.zero_()
    read.copy_(other)
    return True


def _is_rms_norm(module: nn.Module, size: int) -> bool:
    weight = getattr(module, "weight", None)
    return "RMSNorm" in type(module).__name__ and isinstance(weight, Tensor) and tuple(weight.shape) == (size,)
