"""The trees found for what drafts, by device, kind and temperature: ``tree.json`` beside its configuration.

``{"cpu": {"hybrid": [{"temperature": 1.0, "total_token": 8, "depth": 1, "top_k": 2, "sampling": {...}}, ...]}}``.
What a node costs on a CPU hangs on the numbers that are multiplied, so those of 8-bit models stand under ``"cpu
int8"``, and ``"cpu bfloat16"`` is for a CPU with products in bfloat16. With the trees of a sorted draft stand the
``thresholds`` of its exits.
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
from eagle.tree.shape import Sampling, TreeShape, nearest

TREE_FILE, THRESHOLDS = "tree.json", "thresholds"
DEFAULT_TREE = TreeShape(total_token=60, depth=5, top_k=10)


@dataclass(frozen=True)
class StoredTrees:
    """The trees found for a head, or for a sorted draft, on a kind of device.

    Attributes:
        found: by kind of tree, then by the temperature at which they were the fastest.
        thresholds: of the exits of a sorted draft, with its trees.
    """

    found: Mapping[str, Mapping[float, TreeShape]] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[float, tuple[float, ...]]] = field(default_factory=dict)

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
            rows = _by_temperature(stored.get(form.partition(" ")[0], {})) | _by_temperature(stored.get(form, {}))
            return cls(
                {kind: {at: _shape(row) for at, row in found.items()} for kind, found in rows.items()},
                {
                    kind: {at: tuple(map(float, row[THRESHOLDS])) for at, row in found.items() if THRESHOLDS in row}
                    for kind, found in rows.items()
                },
            )
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"cannot understand {file}: {why}; without it a default tree is used") from error

    def at(self, temperature: float, kind: str, default: TreeShape = DEFAULT_TREE) -> TreeShape:
        """The tree of a kind found at the temperature nearest to this one; ``default`` if there is none."""
        found = self.found.get(kind)
        return nearest(found, temperature) if found else default

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


def store(
    head: Path,
    form: str,
    found: Mapping[str, Mapping[float, TreeShape]],
    thresholds: Sequence[float] | None = None,
) -> Path:
    """Put trees into the folder of what drafts them, beside those of other forms, kinds and temperatures.

    Args:
        head: the folder.
        form: see ``form_of``.
        found: by kind, then by temperature.
        thresholds: with which a sorted draft drafts them.

    Returns:
        The file.

    Raises:
        InputError: the file that is there cannot be understood, or the folder not be written to.
    """
    StoredTrees.read(head, form)
    file = head / TREE_FILE
    stored = _stored(file)
    rows = _by_temperature(stored.get(form, {}))
    exits = {} if thresholds is None else {THRESHOLDS: list(thresholds)}
    for kind, trees in found.items():
        own = rows.setdefault(kind, {})
        own |= {at: {"temperature": at, **shape.record(), **exits} for at, shape in trees.items()}
    stored[form] = {kind: [row for _, row in sorted(rows[kind].items())] for kind in sorted(rows)}
    temporary = file.with_name(f".{file.name}")
    try:
        temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}") from error
    return file


def _stored(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}


def _by_temperature(kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[float, Mapping[str, Any]]]:
    return {kind: {float(row["temperature"]): row for row in rows} for kind, rows in kinds.items()}


def _shape(row: Mapping[str, Any]) -> TreeShape:
    numbers = {name: value for name, value in row.items() if name not in ("temperature", "sampling", THRESHOLDS)}
    sampling = row.get("sampling")
    return TreeShape(**numbers, sampling=Sampling(**sampling) if sampling else None)
