"""How many tokens a model reads, as its configuration says it: the rotary encoding may reach beyond what is stated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

# Models that state the length after linear scaling; all others state the one before it.
ALREADY_SCALED = "gemma3"


def context_length(config: PretrainedConfig) -> int | None:
    """Positions that a model's encoding is made for.

    ``max_position_embeddings``, except where the encoding is stretched by a factor and that number is the one before:

    - ``yarn``: the factor times ``original_max_position_embeddings`` (Qwen's models are published so: to read more, one
      puts the factor into the configuration and changes nothing else);
    - ``linear``: the factor times ``max_position_embeddings`` (Vicuna's models of 16k are published so).

    With ``llama3`` and ``longrope`` it is the number after stretching. With ``dynamic`` everything beyond it depends on
    how long the text is, so that keys in a cache would be of another encoding than the tokens that look at them.

    Args:
        config: of the text model.

    Returns:
        None if the configuration does not say.
    """
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        return None
    rotary = encodings(config)
    if any(kind(encoding) == "dynamic" for encoding in rotary):
        return int(stated)
    scaled_already = ALREADY_SCALED in config.model_type
    return max([int(stated), *(_stretched(encoding, int(stated), scaled_already) for encoding in rotary)])


def encodings(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The rotary parameters of each kind of layer, which lie one level deeper where the kinds differ."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]


def kind(encoding: Mapping[str, Any]) -> str:
    """The name of a rotary encoding: ``default``, ``linear``, ``dynamic``, ``yarn``, ``longrope``, ``llama3``, ..."""
    return str(encoding.get("rope_type", encoding.get("type", "default")))


def _stretched(encoding: Mapping[str, Any], stated: int, scaled_already: bool) -> int:
    factor = encoding.get("factor") or 1.0
    if kind(encoding) == "yarn":
        return int(factor * (encoding.get("original_max_position_embeddings") or stated))
    if kind(encoding) == "linear" and not scaled_already:
        return int(factor * stated)
    return stated
