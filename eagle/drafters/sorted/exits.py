"""Which exit a node of a tree leaves at.

With sampled children what a node's law is may depend on nothing that was drawn after it, nor on what was drawn below a
younger sibling: so a node leaves by what it says itself at the exits before, which its own path decides
(docs/hsd.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle import assets
from eagle.checks import whole_number
from eagle.errors import InputError
from eagle.tree.shape import DETERMINISTIC, HYBRID, nearest


@dataclass(frozen=True)
class SortedDraft:
    """Which sorted draft, and how it is used.

    Attributes:
        path: local directory or hub id; the alias of the embedded pair is the draft that this package ships for it.
        exit: the only exit to use, counted from 1; None: all.
        thresholds: of largest probabilities, above which a node leaves; None: all nodes go to the last exit.

    Raises:
        InputError: an exit below 1, or thresholds for a single one.
    """

    path: str
    exit: int | None = None
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.exit is not None and whole_number("exit", self.exit) < 1:
            raise InputError(f"--exit counts from 1, it is not {self.exit}")
        if self.exit is not None and self.thresholds is not None:
            raise InputError("with one --exit there are no --exit-thresholds")

    @property
    def folder(self) -> str:
        """Where it is: local directory or hub id."""
        return str(assets.sorted_draft()) if self.path == assets.DEFAULT_PAIR else self.path

    def exits(self, count: int, found: Mapping[str, Mapping[float, Sequence[float]]]) -> Exits | Calibration:
        """Who leaves where, of a model with so many exits.

        Args:
            count: of them.
            found: thresholds that were the fastest, see ``Calibration``.

        Raises:
            InputError: thresholds that do not fit.
        """
        if self.thresholds is not None:
            return Thresholds(self.thresholds, count)
        if self.exit is not None or not found:
            return LastExit()
        return Calibration(
            {kind: {at: Thresholds(each, count) for at, each in of.items()} for kind, of in found.items()}
        )


class Exits(ABC):
    """Decides, node by node, whether to go on behind an exit."""

    @abstractmethod
    def deeper(self, exit_number: int, logits: Tensor) -> Tensor:
        """Of nodes at an exit that is not the last: (n, D) logits there -> (n,) bool on the host, who goes on."""

    def at(self, temperature: float, kind: str) -> Exits:
        """The same in every text."""
        return self

    def stops(self, count: int) -> tuple[int, ...]:
        """Those of ``count`` exits, from 0, that nodes may leave at: before any other nobody has to say anything."""
        return tuple(range(count))

    def routes(self, count: int) -> set[tuple[int, ...]]:
        """All ``stops`` there are, whatever the text."""
        return {self.stops(count)}

    def among(self, kept: Sequence[int]) -> Exits:
        """The same of a model with some of the exits only, from 0, among which are all that nodes may leave at."""
        return self

    @property
    @abstractmethod
    def settled(self) -> Mapping[str, Any]:
        """What it is, as a run's record has it."""


class LastExit(Exits):
    """All go to the last one."""

    def deeper(self, exit_number: int, logits: Tensor) -> Tensor:
        """See ``Exits.deeper``."""
        return torch.ones(len(logits), dtype=torch.bool)

    def stops(self, count: int) -> tuple[int, ...]:
        """See ``Exits.stops``."""
        return (count - 1,)

    @property
    def settled(self) -> Mapping[str, Any]:
        """See ``Exits.settled``."""
        return {}


class Thresholds(Exits):
    """A node leaves where its largest probability is above a threshold (S2D's adaptive selection).

    Args:
        thresholds: of the exits in order; that of the last one is not asked for, and may be left out.
        exits: how many there are.

    Raises:
        InputError: another number of them, or one outside [0, 1].
    """

    def __init__(self, thresholds: Sequence[float], exits: int) -> None:
        if len(thresholds) not in (exits - 1, exits) or not all(0.0 <= value <= 1.0 for value in thresholds):
            raise InputError(
                f"there are {exits} exits: give {exits - 1} thresholds from 0 to 1, and one more for the last if you "
                f"like, not {' '.join(map(str, thresholds)) or 'none'}"
            )
        self._thresholds = tuple(thresholds[: exits - 1])

    def deeper(self, exit_number: int, logits: Tensor) -> Tensor:
        """See ``Exits.deeper``."""
        largest = (logits.amax(-1) - logits.float().logsumexp(-1)).exp()
        return (largest <= self._thresholds[exit_number]).cpu()

    def stops(self, count: int) -> tuple[int, ...]:
        """See ``Exits.stops``: none is more likely than 1, and some is more likely than 0."""
        last = next((number for number, value in enumerate(self._thresholds) if value == 0.0), count - 1)
        return (*(number for number in range(last) if self._thresholds[number] < 1.0), last)

    def among(self, kept: Sequence[int]) -> Thresholds:
        """See ``Exits.among``."""
        return Thresholds([self._thresholds[number] for number in kept[:-1]], len(kept))

    @property
    def settled(self) -> Mapping[str, Any]:
        """See ``Exits.settled``."""
        return {"thresholds": list(self._thresholds)}


@dataclass(frozen=True)
class Calibration:
    """Exits that were the fastest on training prompts, weighing what the layers behind an exit cost on this machine
    against what was accepted more for them (``python -m eagle.model.tune_tree --drafter sorted``).

    Attributes:
        found: by kind of tree, then by the temperature of the text.
    """

    found: Mapping[str, Mapping[float, Thresholds]]

    def at(self, temperature: float, kind: str) -> Exits:
        """Those found at the temperature nearest to this one; the last exit for a kind of which none were."""
        found = self.found.get(kind)
        return nearest(found, temperature) if found else LastExit()

    def routes(self, count: int) -> set[tuple[int, ...]]:
        """See ``Exits.routes``."""
        chosen: list[Exits] = [each for found in self.found.values() for each in found.values()]
        if not self.found.keys() >= {DETERMINISTIC, HYBRID}:
            chosen.append(LastExit())
        return {each.stops(count) for each in chosen}

    def among(self, kept: Sequence[int]) -> Calibration:
        """See ``Exits.among``."""
        return Calibration(
            {kind: {at: each.among(kept) for at, each in found.items()} for kind, found in self.found.items()}
        )

    @property
    def settled(self) -> Mapping[str, Any]:
        """See ``Exits.settled``."""
        return {
            "calibrated": {
                kind: {str(at): each.settled["thresholds"] for at, each in found.items()}
                for kind, found in self.found.items()
            }
        }
