"""A tiny pair whose answers end only where they are cut or stopped."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny import make_chat_pair

ENDLESS = 30_000
"""New tokens that nobody waits for: minutes."""


def make_endless_pair(folder: Path) -> list[str]:
    """Save a chat pair without an end token and with room for ``ENDLESS`` tokens; returns the arguments for it."""
    base, head = make_chat_pair(folder)
    for name, changes in (
        ("config.json", {"eos_token_id": None, "max_position_embeddings": 2 * ENDLESS}),
        ("generation_config.json", {"eos_token_id": None}),
    ):
        file = base / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return ["--base-model-path", str(base), "--ea-model-path", str(head), "--device", "cpu"]
