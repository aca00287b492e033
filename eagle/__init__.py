"""EAGLE-3 speculative decoding on stock ``transformers`` models."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["EaModel", "speculative_generate"]

_PLACES = {"EaModel": "eagle.model.ea_model", "speculative_generate": "eagle.model.generation"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: most programs need no model."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
