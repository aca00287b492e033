"""The draft tree, and growing it: EAGLE-3's dynamic tree, with or without sampled children.

Source: EAGLE-2 (Li et al. 2024, section 4: expansion and re-ranking by the draft's own confidence), which EAGLE-3
(Li et al. 2025) keeps. Sampled children beside the most likely ones are this package's, see docs/hsd.md. Nothing here
knows a model: growth sees logits, asks for more, and draws with what it is given.
"""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eagle.errors import InputError
from eagle.model.checks import number, whole_number
from eagle.model.devices import sent

AUTO_TOTAL_TOKEN = -1
ONE_HOT = -1
MOST_SAMPLES = 3
DETERMINISTIC, HYBRID, CHAIN = TREES = ("deterministic", "hybrid", "chain")


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
    """

    threshold: float | None
    rho: float
    samples: int
    draft_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0.0 <= number("threshold", self.threshold) <= 1.0:
            raise InputError(f"threshold must lie in [0, 1], not {self.threshold}")
        if not 0.0 < number("rho", self.rho) <= 1.0:
            raise InputError(f"rho must lie in (0, 1], not {self.rho}: a child's key may not exceed its parent's")
        if not 0 <= whole_number("samples", self.samples) <= MOST_SAMPLES:
            raise InputError(f"samples must be 0 to {MOST_SAMPLES}, not {self.samples}")
        if not (math.isfinite(number("draft_temperature", self.draft_temperature)) and self.draft_temperature > 0):
            raise InputError(f"draft_temperature must be a finite number above 0, not {self.draft_temperature}")


@dataclass(frozen=True)
class TreeShape:
    """How large a tree may grow, and of what children.

    Attributes:
        total_token: nodes of the final tree, the root included.
        depth: expansions after the first level, so the tree has at most ``depth + 1`` levels below the root.
        top_k: deterministic children an expanded node may have, and expanded nodes a level.
        sampling: sampled children; None: all are deterministic, which is EAGLE-3's tree.
    """

    total_token: int
    depth: int
    top_k: int
    sampling: Sampling | None = None

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

    @property
    def kind(self) -> str:
        """One of ``TREES``: EAGLE-3's tree, one with sampled children too, or a single sampled path."""
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
            return replace(self, sampling=None)
        threshold = self.sampling.threshold
        if threshold is not None:
            threshold *= temperature**2
        rho = self.sampling.rho * temperature**2
        return replace(self, sampling=replace(self.sampling, threshold=threshold, rho=rho))

    def levels(self, room: int) -> int:
        """Levels worth growing when only ``room`` more can be emitted; N - 1 nodes are never deeper than N - 1."""
        return min(self.depth + 1, self.total_token - 1, room)

    @property
    def most_drafted(self) -> int:
        """Nodes that growth may hand to the head, summed over the levels: the room a head's cache needs."""
        return self.top_k * self.depth


@dataclass(frozen=True)
class Laws:
    """What the tokens of a tree's nodes were drawn from, given everything drawn before them.

    Attributes:
        rows: (R, D) probabilities over the draft vocabulary, one row per sampled node, each of sum 1.
        row_of: (N,) int64 on the host, the row of each node; ``ONE_HOT`` where the token was picked, not drawn.
        columns: (N,) int64 on the host, each node's token as an index into the draft vocabulary; -1 where it is not in
            it, as the root's may not be.
        support: (D,) int64, the target ids of the columns, all different.
    """

    rows: Tensor
    row_of: Tensor
    columns: Tensor
    support: Tensor


@dataclass(frozen=True)
class DraftTree:
    """A drafted tree of N nodes. Node 0 is the root, the last committed token; the others are in the order in which
    they were decided on: parents come before their children, and where a node hangs and what law its token has depend
    on nodes before it only. A grown tree has its nodes in the order of their keys.

    Structure lives on the host, where the walk through the tree takes place.

    Attributes:
        tokens: (N,) int64 on the host, target vocabulary ids.
        parents: (N,) int64 on the host; the root is its own parent.
        depths: (N,) int64 on the host; 0 for the root.
        keys: (N,) float32 (float64 for a float64 head) on the head's device, the logarithm of what a node was ranked
            by; 0 for the root. Of deterministic nodes it is the head's cumulative log-probability.
        laws: of the sampled nodes; None: the tree has none.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    keys: Tensor
    laws: Laws | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def draft_length(self) -> int:
        """Tokens on the longest root-to-leaf path, the root included."""
        return int(self.depths.max()) + 1

    def children(self) -> list[list[int]]:
        """For each node the ids of its children in the order of verification: by the first node that was drawn in
        each one's subtree, the child itself included; picks with nothing drawn below them come last."""
        parents, nodes = self.parents.tolist(), range(1, len(self))
        drawn = [False] * len(self) if self.laws is None else (self.laws.row_of != ONE_HOT).tolist()
        first = [node if drawn[node] else len(self) for node in range(len(self))]
        for node in reversed(nodes):
            first[parents[node]] = min(first[parents[node]], first[node])
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node in sorted(nodes, key=first.__getitem__):
            children[parents[node]].append(node)
        return children

    def path_to(self, node: int) -> tuple[int, ...]:
        """Ids of the nodes from the root down to ``node``."""
        path = [node]
        while path[-1]:
            path.append(int(self.parents[path[-1]]))
        return tuple(reversed(path))

    def ancestors(self) -> Tensor:
        """(N, N) bool on the host; row i marks node i and all its ancestors, which are what node i attends to."""
        seen = torch.eye(len(self), dtype=torch.bool)
        current = self.parents
        for _ in range(self.draft_length - 1):
            seen.scatter_(1, current[:, None], True)
            current = self.parents[current]
        return seen

    def best(self, total_token: int) -> DraftTree:
        """Of a grown tree: the tree that growth with the same draws and a smaller ``total_token`` keeps, which are its
        first nodes."""
        laws = self.laws
        if laws is not None:
            laws = replace(laws, row_of=laws.row_of[:total_token], columns=laws.columns[:total_token])
        return DraftTree(
            tokens=self.tokens[:total_token],
            parents=self.parents[:total_token],
            depths=self.depths[:total_token],
            keys=self.keys[:total_token],
            laws=laws,
        )


def root_only(token: int) -> DraftTree:
    """A tree without drafts: scoring it is one step of autoregressive decoding.

    Args:
        token: the last committed token.
    """
    zero = torch.zeros(1, dtype=torch.int64)
    return DraftTree(tokens=torch.tensor([token]), parents=zero, depths=zero, keys=torch.zeros(1))


Expand = Callable[[Tensor, Tensor], Tensor]
"""``expand(tokens, parents) -> logits``: run the head on one level.

tokens: (k,) draft ids of the frontier; parents: (k,) index of each one's parent in the frontier before it (all 0 for
the first level, whose parent is the root). Returns (k, draft vocabulary) logits of what follows each of them.
"""


@dataclass(frozen=True)
class Chance:
    """Where sampled children come from.

    Attributes:
        law: (k, D) logits -> (k, D) probabilities, warped like the target's, in memory of their own; None: their
            softmax.
        choose: (k, D) weights -> (k,) int64, in each row a column drawn with probability proportional to its weight;
            any column in a row without weight.
    """

    law: Callable[[Tensor], Tensor] | None
    choose: Callable[[Tensor], Tensor]


def grow(
    root: int,
    root_logits: Tensor,
    expand: Expand,
    support: Tensor,
    shape: TreeShape,
    levels: int,
    chance: Chance | None = None,
) -> DraftTree:
    """Grow a tree below ``root``.

    Level by level the ``top_k`` candidates of largest key are expanded; of all candidates the ``total_token - 1`` of
    largest key stay. Ties go to the smaller depth, then to the elder.

    Joint verification is lossless only if nodes are decided on one by one, each before its token is drawn, and siblings
    are verified in the order in which something was first drawn in their subtrees (docs/hsd.md). Hence a key is fixed
    before its node's token is drawn and is at most the parent's.

    One transfer to the host, at the end.

    Args:
        root: last committed token, a target id.
        root_logits: (draft vocabulary,) logits of what follows the root.
        expand: runs the head on a frontier, see ``Expand``.
        support: (draft vocabulary,) int64, the target id of each draft id.
        shape: bounds of the tree, for the temperature at hand (``TreeShape.at``).
        levels: levels to grow, at least 1 (see ``TreeShape.levels``).
        chance: what samples are drawn from, and how; needed where ``shape`` has samples.
    """
    wide = torch.float64 if root_logits.dtype == torch.float64 else torch.float32
    families = [_family(root_logits[None], root_logits.new_zeros(1, dtype=wide), shape, chance)]
    frontiers = [torch.zeros(1, dtype=torch.int64, device=root_logits.device)]
    for _ in range(levels - 1):
        last = families[-1]
        frontier = best(last.keys.reshape(-1), shape.top_k)
        logits = expand(last.tokens.reshape(-1)[frontier], frontier // last.tokens.shape[1])
        families.append(_family(logits, last.keys.reshape(-1)[frontier], shape, chance))
        frontiers.append(frontier)
    return _select(root, families, frontiers, support, shape.total_token)


@dataclass(frozen=True)
class _Family:
    """The children of k expanded nodes, w each: deterministic ones, best first, and behind them the samples in order.

    tokens: (k, w) draft ids; keys: (k, w), -inf for a child that does not exist; pool: (k, D) weights of the tokens
    that the first sample was drawn from; samples: how many of the w are samples.
    """

    tokens: Tensor
    keys: Tensor
    pool: Tensor | None = None
    samples: int = 0


def _family(logits: Tensor, parent_keys: Tensor, shape: TreeShape, chance: Chance | None) -> _Family:
    """Pick and draw the children of a frontier: (k, D) logits of what follows it, (k,) its keys."""
    q = logits.softmax(-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    top, tokens = q.topk(min(shape.top_k, logits.shape[-1]), dim=-1)
    keys = parent_keys[:, None] + top.log_()
    sampling = shape.sampling
    if sampling is None:
        return _Family(tokens, keys)
    # Keys are never above 0, so no threshold of 1 or less is asked of a child that does not exist.
    lowest = math.inf if sampling.threshold is None else math.log(max(sampling.threshold, sys.float_info.min))
    unpicked = keys < lowest
    keys = keys.masked_fill(unpicked, -torch.inf)
    if not sampling.samples:
        return _Family(tokens, keys)
    if chance is None:
        raise ValueError("a shape with samples needs something to draw them with")
    pool = q if chance.law is None else chance.law(logits)
    pool.scatter_(1, tokens, pool.gather(1, tokens).mul_(unpicked))
    mass = pool.sum(-1, keepdim=True)
    first = parent_keys[:, None] + (sampling.rho * mass.clamp(max=1.0)).log_().to(parent_keys.dtype)
    weights, drawn, sample_keys = pool, [tokens], [keys]
    for j in range(sampling.samples):
        column = chance.choose(weights)[:, None]
        drawn.append(column)
        # Where no weight is left there is nothing to draw; a first sample without any has the key -inf already.
        key = (first - j * math.log(2)).masked_fill_(weights.gather(1, column) <= 0, -torch.inf) if j else first
        sample_keys.append(key)
        if j + 1 < sampling.samples:
            weights = weights.scatter(1, column, 0.0)
    return _Family(torch.cat(drawn, dim=1), torch.cat(sample_keys, dim=1), pool, sampling.samples)


def best(keys: Tensor, count: int) -> Tensor:
    """Ids of the ``count`` largest keys, best first, ties to the smaller id (``topk`` promises no order for ties)."""
    return torch.argsort(keys, descending=True, stable=True)[:count]


def _select(
    root: int, families: list[_Family], frontiers: list[Tensor], support: Tensor, total_token: int
) -> DraftTree:
    """Keep the best candidates of all levels, best first: no key is above the parent's, and ties go to the elder, so
    parents come before their children, and what stays is decided by nodes before it."""
    keys = torch.cat([family.keys.reshape(-1) for family in families])
    tokens = torch.cat([family.tokens.reshape(-1) for family in families])
    # Candidate i is numbered i + 1, the root is 0.
    parents, first = [torch.zeros_like(families[0].tokens[0])], 1
    for family, child, frontier in zip(families[:-1], families[1:], frontiers[1:], strict=True):
        parents.append((first + frontier)[:, None].expand_as(child.tokens).reshape(-1))
        first += family.tokens.numel()
    kept = best(keys, total_token - 1)
    kept_keys, columns = keys[kept], tokens[kept]
    state = torch.where(kept_keys.isnan(), -1, (kept_keys > -torch.inf).long())
    facts = torch.stack([state, kept, torch.cat(parents)[kept], columns, support[columns]]).tolist()
    if -1 in facts[0]:
        raise InputError("the draft head's logits contain NaN; check its weights, or load the pair in a wider dtype")
    # Where fewer candidates exist than may stay, those that do not exist come last.
    existing = sum(facts[0])
    candidates, parent_ids, column_ids, targets = (values[:existing] for values in facts[1:])
    node_of = {0: 0} | {candidate + 1: node for node, candidate in enumerate(candidates, start=1)}
    starts = list(itertools.accumulate((family.tokens.numel() for family in families), initial=0))
    depths = [bisect.bisect_right(starts, candidate) for candidate in candidates]
    drawn: list[_Drawn] = []
    row_of = [ONE_HOT]
    for candidate, depth in zip(candidates, depths, strict=True):
        family = families[depth - 1]
        parent, place = divmod(candidate - starts[depth - 1], family.tokens.shape[1])
        nth = place - (family.tokens.shape[1] - family.samples)
        row_of.append(ONE_HOT if nth < 0 else len(drawn))
        if nth >= 0:
            drawn.append(_Drawn(family, parent, nth))
    return DraftTree(
        tokens=torch.tensor([root, *targets]),
        parents=torch.tensor([0, *(node_of[parent] for parent in parent_ids)]),
        depths=torch.tensor([0, *depths]),
        keys=torch.cat([keys.new_zeros(1), kept_keys[:existing]]),
        laws=Laws(_law_rows(drawn), torch.tensor(row_of), torch.tensor([ONE_HOT, *column_ids]), support)
        if drawn
        else None,
    )


@dataclass(frozen=True)
class _Drawn:
    """A sampled node: the family it is in, the row of its parent there, and which of the samples it is."""

    family: _Family
    parent: int
    nth: int


def _law_rows(drawn: list[_Drawn]) -> Tensor:
    """(R, D) laws of samples."""
    pools = [node.family.pool for node in drawn if node.family.pool is not None]
    laws = torch.stack([pool[node.parent] for pool, node in zip(pools, drawn, strict=True)])
    for j in range(max(node.nth for node in drawn)):
        # What was drawn before a sample could not be drawn again.
        later = [(row, node.family, node.parent) for row, node in enumerate(drawn) if node.nth > j]
        rows = sent(torch.tensor([row for row, _, _ in later]), laws.device)
        gone = torch.stack([family.tokens[parent, j - family.samples] for _, family, parent in later])
        laws[rows, gone] = 0.0
    return laws.div_(laws.sum(-1, keepdim=True))
