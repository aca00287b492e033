"""Tokens from elsewhere in a tree that a model drafts: picked children that were looked up, not proposed by the model.

They compete with the model's own candidates by their keys and take the place of the weakest. What makes that lossless
is what makes growth so (docs/hsd.md): what is looked up depends on the path to its parent alone, its key is fixed
before anything is drawn behind that parent and is at most the parent's, and no sample is drawn for the same token.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from eagle.devices import sent

Predict = Callable[[Sequence[int]], Mapping[int, float]]
"""Tokens that may come behind a path of tokens below the root, target ids, and their probabilities."""

NO_COLUMN = -1
SMALL = 1e-4


@dataclass(frozen=True)
class Mixture:
    """How likely a token is that was looked up with the probability p and to which the model gives q: its log-odds
    are a sum of theirs.

    Attributes:
        bias: of the sum.
        looked_up: weight of those of p.
        proposed: weight of those of q.
    """

    bias: float
    looked_up: float
    proposed: float

    def log_probability(self, p: Tensor, q: Tensor) -> Tensor:
        """Logarithms of probabilities, elementwise; -inf where p is 0."""
        odds = self.bias + self.looked_up * p.logit(eps=None) + self.proposed * q.logit(eps=SMALL)
        return functional.logsigmoid(odds)


@dataclass(frozen=True)
class Retrieval:
    """What is looked up while a tree grows.

    Attributes:
        predict: what may follow a path, and how likely; above 0, and below 1.
        column_of: the draft id of each target id that has one.
        levels: below the root, at most: paths are followed beyond where the model runs.
        mixture: with what the model says of the same tokens, where it says something; None: it is not asked.
    """

    predict: Predict
    column_of: Mapping[int, int]
    levels: int
    mixture: Mixture | None = None


@dataclass(frozen=True)
class Picks:
    """Children of k nodes that are picked, w each.

    Attributes:
        tokens: (k, w) target ids.
        columns: (k, w) draft ids, ``NO_COLUMN`` of a token that has none.
        keys: (k, w), -inf for a child that does not exist.
    """

    tokens: Tensor
    columns: Tensor
    keys: Tensor


class Retrieved:
    """What is looked up behind the nodes that the model runs on, level by level.

    Args:
        retrieval: what to ask.
        device: of the model.
    """

    def __init__(self, retrieval: Retrieval, device: torch.device) -> None:
        self._retrieval, self._device = retrieval, device
        self._paths: list[tuple[int, ...]] = [()]

    def descend(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """The next level: target ids of its nodes, and the index of each one's parent in the level before."""
        self._paths = [(*self._paths[parent], token) for token, parent in zip(tokens, parents, strict=True)]

    def beside(self, picks: Picks, parent_keys: Tensor, q: Tensor) -> Picks:
        """The children that the model proposes, and those that were looked up.

        Of a token that is both, the model's stays, with the larger of the keys.

        Args:
            picks: the model's, of the level's nodes.
            parent_keys: (k,) of these nodes.
            q: (k, D) what the model says follows them.
        """
        found = [self._retrieval.predict(path) if len(path) < self._retrieval.levels else {} for path in self._paths]
        width = max(map(len, found))
        if width == 0:
            return picks
        ids = [[*each, *[NO_COLUMN] * (width - len(each))] for each in found]
        likely = [[*each.values(), *[0.0] * (width - len(each))] for each in found]
        places = [[self._retrieval.column_of.get(token, NO_COLUMN) for token in row] for row in ids]
        tokens, columns = sent(torch.tensor([ids, places]), self._device)
        p = sent(torch.tensor(likely, dtype=q.dtype), self._device)
        logs = p.log()
        if self._retrieval.mixture is not None:
            mixed = self._retrieval.mixture.log_probability(p, q.gather(1, columns.clamp(min=0)))
            logs = torch.where(columns >= 0, mixed, logs)
        keys = parent_keys[:, None] + logs
        same = picks.tokens[:, :, None] == tokens[:, None, :]
        raised = torch.where(same, keys[:, None, :], -torch.inf).amax(-1)
        return Picks(
            torch.cat([picks.tokens, tokens], dim=1),
            torch.cat([picks.columns, columns], dim=1),
            torch.cat([picks.keys.maximum(raised), keys.masked_fill(same.any(1), -torch.inf)], dim=1),
        )


@dataclass(order=True)
class _Found:
    """A token behind a node of the tree, ordered as they are decided on: the largest key first, then the elder."""

    cost: float
    number: int
    parent: int = field(compare=False)
    token: int = field(compare=False)


class Tail:
    """What is looked up behind nodes that the model was not run on, as a tree is put together.

    Args:
        retrieval: what to ask.
    """

    def __init__(self, retrieval: Retrieval) -> None:
        self._retrieval = retrieval
        self._found: list[_Found] = []
        self._count = 0

    def look(self, node: int, path: Sequence[int], key: float) -> None:
        """Look up what may follow a node of the tree, given the path to it from below the root and its key."""
        if len(path) == self._retrieval.levels:
            return
        for token, probability in self._retrieval.predict(path).items():
            self._count += 1
            heapq.heappush(self._found, _Found(-key - math.log(probability), self._count, node, token))

    @property
    def largest(self) -> float:
        """The largest key there is; -inf where nothing was found."""
        return -self._found[0].cost if self._found else -math.inf

    def take(self) -> tuple[int, int, float]:
        """Parent, token and key of what has it."""
        found = heapq.heappop(self._found)
        return found.parent, found.token, -found.cost
