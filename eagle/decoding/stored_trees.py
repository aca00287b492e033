"""The trees found for a head, by device, kind and temperature: ``tree.json`` beside its configuration.

``{"cpu": {"hybrid": [{"temperature": 1.0, "total_token": 8, "depth": 1, "top_k": 2, "sampling": {...}}, ...]}}``.
What a node costs on a CPU hangs on the numbers that are multiplied, so those of 8-bit models stand under ``"cpu
int8"``, and ``"cpu bfloat16"`` is for a CPU with products in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eagle.devices import bfloat16_is_fast
from eagle.errors import InputError
from eagle.target.int8 import INT8, quantized
from eagle.target.target import Target
from eagle.tree.shape import Sampling, TreeShape

TREE_FILE = "tree.json"
DEFAULT_TREE = TreeShape(total_token=60, depth=5, top_k=10)


@dataclass(frozen=True)
class StoredTrees:
    """The trees found for a head on a kind of device.

    Attributes:
        found: by kind of tree, then by the temperature at which they were the fastest.
    """

    found: Mapping[str, Mapping[float, TreeShape]] = field(default_factory=dict)

    @classmethod
    def read(cls, head: Path, form: str) -> StoredTrees:
        """Those in a head's folder for a form of the target, if any.

        Args:
            head: the folder.
            form: see ``form_of``; of a kind that none is stored of for it, those of the device alone hold.

        Raises:
            InputError: the folder's ``tree.json`` cannot be understood.
        """
        file = head / TREE_FILE
        try:
            stored = _stored(file)
            return cls(_trees(stored.get(form.partition(" ")[0], {})) | _trees(stored.get(form, {})))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"cannot understand {file}: {why}; without it a default tree is used") from error

    def at(self, temperature: float, kind: str, default: TreeShape = DEFAULT_TREE) -> TreeShape:
        """The tree of a kind found at the temperature nearest to this one; ``default`` if there is none."""
        found = self.found.get(kind)
        if not found:
            return default
        return found[min(found, key=lambda searched: (abs(searched - temperature), searched))]

    def each(self, made: Callable[[TreeShape], TreeShape]) -> StoredTrees:
        """The trees that a function makes of these."""
        return StoredTrees(
            {kind: {at: made(shape) for at, shape in found.items()} for kind, found in self.found.items()}
        )


NO_TREES = StoredTrees()


def form_of(target: Target) -> str:
    """The name of what decides how much a node costs beside a token: ``cpu``, ``cpu int8``, ``cpu bfloat16`` (where the
    CPU has products of such numbers), ``cuda``, ``mps``."""
    device = target.device.type
    if device == "cpu" and quantized(target.model):
        return f"{device} {INT8}"
    if device == "cpu" and target.dtype == torch.bfloat16 and bfloat16_is_fast():
        return f"{device} bfloat16"
    return device


def store(head: Path, form: str, found: Mapping[str, Mapping[float, TreeShape]]) -> Path:
    """Put trees into a head's folder, beside those of other forms, kinds and temperatures; returns the file.

    Raises:
        InputError: the file that is there cannot be understood, or the folder not be written to.
    """
    StoredTrees.read(head, form)
    file = head / TREE_FILE
    stored = _stored(file)
    before = _trees(stored.get(form, {}))
    stored[form] = {
        kind: [
            {"temperature": temperature, **shape.record()}
            for temperature, shape in sorted({**before.get(kind, {}), **found.get(kind, {})}.items())
        ]
        for kind in sorted({*before, *found})
    }
    temporary = file.with_name(f".{file.name}")
    try:
        temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}") from error
    return file


def _stored(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}


def _trees(kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[float, TreeShape]]:
    return {kind: {float(row["temperature"]): _shape(row) for row in rows} for kind, rows in kinds.items()}


def _shape(row: Mapping[str, Any]) -> TreeShape:
    numbers = {name: value for name, value in row.items() if name not in ("temperature", "sampling")}
    sampling = row.get("sampling")
    return TreeShape(**numbers, sampling=Sampling(**sampling) if sampling else None)
