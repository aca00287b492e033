"""The trees found for a head, by device, kind and temperature: ``tree.json`` beside its configuration.

``{"cpu": {"hybrid": [{"temperature": 1.0, "total_token": 8, "depth": 1, "top_k": 2, "sampling": {...}}, ...]}}``; those
of 8-bit models, whose nodes cost less, stand under ``"cpu int8"``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle.errors import InputError
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
    def read(cls, head: Path, device: str, quantize: str | None = None) -> StoredTrees:
        """Those in a head's folder for a kind of device (``cpu``, ``cuda``, ``mps``), if any.

        Args:
            head: the folder.
            device: its kind.
            quantize: ``int8``; of a kind that none is stored of for it, those without it hold.

        Raises:
            InputError: the folder's ``tree.json`` cannot be understood.
        """
        file = head / TREE_FILE
        try:
            stored = _stored(file)
            return cls(_trees(stored.get(device, {})) | _trees(stored.get(_form(device, quantize), {})))
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


def store(head: Path, device: str, found: Mapping[str, Mapping[float, TreeShape]], quantize: str | None = None) -> Path:
    """Put trees into a head's folder, beside those of other devices, kinds and temperatures; returns the file.

    Raises:
        InputError: the file that is there cannot be understood, or the folder not be written to.
    """
    StoredTrees.read(head, device, quantize)
    file, form = head / TREE_FILE, _form(device, quantize)
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


def _form(device: str, quantize: str | None) -> str:
    return device if quantize is None else f"{device} {quantize}"


def _stored(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}


def _trees(kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[float, TreeShape]]:
    return {kind: {float(row["temperature"]): _shape(row) for row in rows} for kind, rows in kinds.items()}


def _shape(row: Mapping[str, Any]) -> TreeShape:
    numbers = {name: value for name, value in row.items() if name not in ("temperature", "sampling")}
    sampling = row.get("sampling")
    return TreeShape(**numbers, sampling=Sampling(**sampling) if sampling else None)
