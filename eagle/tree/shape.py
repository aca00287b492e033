"""How large a draft tree may grow, and of what children: the kinds of trees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from eagle.checks import number, whole_number
from eagle.errors import InputError

Found = TypeVar("Found")
AUTO_TOTAL_TOKEN = -1

MOST_SAMPLES = 3
# What float32 may round a key by.
KEY_ROUNDING = 1e-6

DETERMINISTIC, HYBRID, CHAIN, PATHS = TREES = ("deterministic", "hybrid", "chain", "paths")


@dataclass(frozen=True)
class Sampling:
    """How children are sampled beside (or instead of) the most likely ones.

    Attributes:
        threshold: of the ``top_k`` tokens after a node v, those with key(v) * q(token) of at least this are its
            deterministic children; None: it has none. It is meant for temperature 1 and falls with the temperature,
            see ``TreeShape.at``.
        rho: the key of a node's first sampled child is key(v) * rho * (mass that the law it is drawn from has outside
            the deterministic children). It too is meant for temperature 1.
        samples: sampled children of a node, without replacement; each has half the key of the one before.
        draft_temperature: times the target's temperature is the temperature of the laws that samples are drawn from.
        early: nodes with a key of at least this are decided on before all others, level by level; None: there are none.
            Then the samples of a node are verified before its children even where deeper nodes have larger keys
            (docs/hsd.md). It falls with the temperature as the threshold does.
        early_nodes: so many at most.
    """

    threshold: float | None
    rho: float
    samples: int
    draft_temperature: float = 1.0
    early: float | None = None
    early_nodes: int = 8

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0.0 <= number("threshold", self.threshold) <= 1.0:
            raise InputError(f"threshold must lie in [0, 1], not {self.threshold}")
        if not 0.0 < number("rho", self.rho) <= 1.0:
            raise InputError(f"rho must lie in (0, 1], not {self.rho}: a child's key may not exceed its parent's")
        if not 0 <= whole_number("samples", self.samples) <= MOST_SAMPLES:
            raise InputError(f"samples must be 0 to {MOST_SAMPLES}, not {self.samples}")
        if not (math.isfinite(number("draft_temperature", self.draft_temperature)) and self.draft_temperature > 0):
            raise InputError(f"draft_temperature must be a finite number above 0, not {self.draft_temperature}")
        if self.early is not None and not 0.0 < number("early", self.early) <= 1.0:
            raise InputError(f"early must lie in (0, 1], or be None, not {self.early}")
        if whole_number("early_nodes", self.early_nodes) < 1:
            raise InputError(f"early_nodes must be 1 or more, not {self.early_nodes}")

    def at(self, temperature: float) -> Sampling:
        """What it is for a text of a temperature above 0 and at most 1."""
        fall = temperature**2

        def fallen(key: float | None) -> float | None:
            return None if key is None else key * fall

        return replace(self, threshold=fallen(self.threshold), rho=self.rho * fall, early=fallen(self.early))

    def record(self) -> dict[str, Any]:
        """For a file; what is said of early nodes only where there are some."""
        record = asdict(self)
        if self.early is not None:
            return record
        return {name: value for name, value in record.items() if name not in ("early", "early_nodes")}


@dataclass(frozen=True)
class TreeShape:
    """How large a tree may grow, and of what children.

    Attributes:
        total_token: nodes of the final tree, the root included.
        depth: expansions after the first level, so the tree has at most ``depth + 1`` levels below the root.
        top_k: deterministic children an expanded node may have, and expanded nodes a level.
        sampling: sampled children; None: all are deterministic, which is EAGLE-3's tree.
        paths: of a tree that is so many chains, each drawn by itself from the root on; None for every other tree.
        least: nodes whose key is smaller are not worth scoring, so that a tree may be smaller; None: all are.
        fewest: so many nodes, the root included, stay whatever their keys are.
        least_expanded: nodes whose key is smaller are not expanded, and where no node of a level has one as large,
            there is no further level; None: all are worth it.
    """

    total_token: int
    depth: int
    top_k: int
    sampling: Sampling | None = None
    paths: int | None = None
    least: float | None = None
    fewest: int = 1
    least_expanded: float | None = None

    def __post_init__(self) -> None:
        if whole_number("total_token", self.total_token) < 2:
            raise InputError(
                f"total_token must be at least 2 (the root and one draft) or {AUTO_TOTAL_TOKEN} (tune), "
                f"not {self.total_token}"
            )
        if whole_number("depth", self.depth) < 0:
            raise InputError(f"depth must be 0 or more, not {self.depth}")
        if whole_number("top_k", self.top_k) < 1:
            raise InputError(f"top_k must be 1 or more, not {self.top_k}")
        if self.paths is not None and whole_number("paths", self.paths) < 1:
            raise InputError(f"paths must be 1 or more, not {self.paths}")
        for name in ("least", "least_expanded"):
            bound = getattr(self, name)
            if bound is not None and not 0.0 < number(name, bound) <= 1.0:
                raise InputError(f"{name} must lie in (0, 1], or be None, not {bound}")
        if whole_number("fewest", self.fewest) < 1:
            raise InputError(f"fewest must be 1 or more, not {self.fewest}")

    @classmethod
    def chain(cls, length: int) -> TreeShape:
        """A single path of ``length`` sampled tokens."""
        return cls(length + 1, length - 1, 1, CHAIN_SAMPLING)

    @classmethod
    def several_paths(cls, paths: int, length: int) -> TreeShape:
        """Several such paths, which share what they have in common."""
        return cls(paths * length + 1, length - 1, 1, CHAIN_SAMPLING, paths)

    @property
    def kind(self) -> str:
        """One of ``TREES``: EAGLE-3's tree, one with sampled children too, one sampled path, or several."""
        if self.paths is not None:
            return PATHS
        if self.sampling is None:
            return DETERMINISTIC
        alone = self.top_k == 1 and self.sampling.threshold is None and self.sampling.samples == 1
        return CHAIN if alone else HYBRID

    def at(self, temperature: float) -> TreeShape:
        """The shape for text of this temperature: below 1 threshold and rho fall with its square (measured, see
        docs/hsd.md), and at 0, where only the most likely token can be accepted, nothing is sampled, so that the tree
        is EAGLE-3's."""
        if self.sampling is None or temperature >= 1.0:
            return self
        if temperature == 0.0:
            # Paths that are not drawn are all the same one.
            one = self if self.paths is None else TreeShape.chain(self.depth + 1)
            return replace(one, sampling=None)
        return replace(self, sampling=self.sampling.at(temperature))

    def record(self) -> dict[str, Any]:
        """The shape as JSON has it; the last four only where they say something."""
        record = asdict(self) | {"sampling": self.sampling and self.sampling.record()}
        silent = {"paths": None, "least": None, "fewest": 1, "least_expanded": None}
        return {name: value for name, value in record.items() if name not in silent or silent[name] != value}

    def levels(self, room: int) -> int:
        """Levels worth growing when only ``room`` more can be emitted; N - 1 nodes are never deeper than N - 1."""
        return min(self.depth + 1, self.total_token - 1, room)

    def enough(self, nodes: int, key: float) -> bool:
        """Whether a tree of so many nodes is done, the next one having this key, a logarithm."""
        worth_it = self.least is None or nodes < self.fewest or reaches(key, self.least)
        return nodes >= self.total_token or not worth_it

    @property
    def most_drafted(self) -> int:
        """Nodes that growth may hand to the drafter's model, summed over the levels: the room its cache needs."""
        return (self.paths or self.top_k) * self.depth


CHAIN_SAMPLING = Sampling(threshold=None, rho=1.0, samples=1)
"""Every child is drawn, one of each node."""


def reaches(key: float, probability: float) -> bool:
    """Whether a key, a logarithm in float32, is that of a probability at least; -inf is of none."""
    return key > -math.inf and (probability <= 0.0 or key >= math.log(probability) - KEY_ROUNDING)


def nearest(found: Mapping[float, Found], temperature: float) -> Found:
    """What was found at the temperature nearest to this one, the lower of two; ``found`` is not empty."""
    return found[min(found, key=lambda known: (abs(known - temperature), known))]
