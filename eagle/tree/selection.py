"""Which of the candidates of all levels become nodes of a tree."""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from eagle.devices import sent
from eagle.errors import InputError
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws
from eagle.tree.retrieval import NO_COLUMN, Retrieval, Tail
from eagle.tree.shape import Sampling, TreeShape


@dataclass(frozen=True)
class Family:
    """The children of k expanded nodes, w each: picked ones, and behind them the samples in order.

    Attributes:
        tokens: (k, w) target ids.
        columns: (k, w) draft ids.
        keys: (k, w), -inf for a child that does not exist.
        pool: (k, D) weights of the tokens that the first sample was drawn from.
        samples: how many of the w are samples.
    """

    tokens: Tensor
    columns: Tensor
    keys: Tensor
    pool: Tensor | None = None
    samples: int = 0


@dataclass(frozen=True)
class Candidates:
    """What may become nodes of a tree, on the drafter's device, and the n that are decided on first.

    Attributes:
        families: of each level, the root's first.
        frontiers: for each level below the root that was expanded, which of its candidates were.
        ranks: (n,) what the first are decided on by, the largest first.
        keys: (n,) theirs.
        facts: int64: of the first their states (1: a node, 0: none, -1: a key that is NaN), their places among all
            candidates, tokens and columns, n each, and then the frontiers.
    """

    families: list[Family]
    frontiers: list[Tensor]
    ranks: Tensor
    keys: Tensor
    facts: Tensor


def ranked_candidates(
    families: list[Family], frontiers: list[Tensor], shape: TreeShape, retrieving: bool
) -> Candidates:
    """Find the candidates that are decided on first: no key is above the parent's, and ties go to the elder, so parents
    come before their children, and what stays is decided by nodes before it.

    Args:
        families: of each level, the root's first.
        frontiers: for each level below the root that was expanded, which of its candidates were.
        shape: bounds of the tree.
        retrieving: whether something will be looked up behind them: then all of them may be worth it.
    """
    keys = torch.cat([family.keys.reshape(-1) for family in families])
    ranks = _ranks(keys, families, shape.sampling)
    kept = best(ranks, shape.total_token - 1)
    kept_keys = keys[kept]
    tokens = torch.cat([family.tokens.reshape(-1) for family in families])[kept]
    columns = torch.cat([family.columns.reshape(-1) for family in families])[kept]
    # Of a candidate that does not exist the key is -inf; of NaN it is not what it is.
    wanted = kept_keys > -torch.inf
    if shape.least is not None and not retrieving:
        wanted[shape.fewest - 1 :] &= (kept_keys >= math.log(shape.least))[shape.fewest - 1 :]
        wanted |= ranks[kept] > 0
    state = wanted.long() - (kept_keys != kept_keys).long()
    facts = torch.cat([state, kept, tokens, columns, *frontiers])
    return Candidates(families, frontiers, ranks[kept], kept_keys, facts)


def select(
    root: int, found: Candidates, support: Tensor, shape: TreeShape, retrieval: Retrieval | None = None
) -> DraftTree:
    """The tree of the candidates that are decided on first.

    Args:
        root: last committed token.
        found: the candidates.
        support: (draft vocabulary,) int64, the target id of each draft id.
        shape: bounds of the tree.
        retrieval: what is looked up behind nodes that were not expanded.

    Raises:
        InputError: keys with NaN.
    """
    keys, count = found.keys, len(found.keys)
    facts = found.facts.tolist()
    states, *candidates = (facts[i * count : (i + 1) * count] for i in range(4))
    if -1 in states:
        raise InputError("the drafter's logits contain NaN; check its weights, or load the pair in a wider dtype")
    # Those that do not exist, or are not worth it, come last.
    existing = sum(states)
    tree = _Nodes(root, found.families, _split(facts[4 * count :], [len(frontier) for frontier in found.frontiers]))
    if retrieval is None:
        for candidate in list(zip(*candidates, strict=True))[:existing]:
            tree.add(*candidate)
        return tree.finished(functional.pad(keys[:existing], (1, 0)), support)
    numbers = torch.stack([found.ranks, keys]).tolist()
    all_keys = _with_tail(tree, list(zip(*candidates, *numbers, strict=True))[:existing], shape, retrieval)
    return tree.finished(sent(torch.tensor(all_keys, dtype=keys.dtype), keys.device), support)


def _with_tail(
    tree: _Nodes, candidates: list[tuple[int, int, int, float, float]], shape: TreeShape, retrieval: Retrieval
) -> list[float]:
    """Put a tree together of candidates, with their ranks and keys, and what is looked up behind those of them that
    were not expanded; returns the keys of the nodes."""
    tail = Tail(retrieval)
    keys = [0.0]

    def fill(rank: float) -> None:
        """Nodes that are decided on before anything of this rank."""
        while not shape.enough(len(tree), tail.largest) and tail.largest > rank:
            parent, token, key = tail.take()
            tree.append(parent, token)
            keys.append(key)
            tail.look(len(tree) - 1, tree.paths[-1], key)

    for candidate, token, column, rank, key in candidates:
        fill(rank)
        if shape.enough(len(tree), key if rank <= 0 else 0.0):
            return keys
        tree.add(candidate, token, column)
        keys.append(key)
        if not tree.was_expanded(candidate):
            tail.look(len(tree) - 1, tree.paths[-1], key)
    fill(-math.inf)
    return keys


class _Nodes:
    """The nodes of a tree that is put together.

    Args:
        root: last committed token.
        families: of each level.
        frontiers: for each level below the root that was expanded, which of its candidates were, in order.
    """

    def __init__(self, root: int, families: list[Family], frontiers: list[list[int]]) -> None:
        self._families = families
        # Candidates are counted through all levels.
        self._starts = list(itertools.accumulate((family.tokens.numel() for family in families), initial=0))
        self._expanded = [
            [start + place for place in places]
            for start, places in zip(self._starts[: len(frontiers)], frontiers, strict=True)
        ]
        self._node_of: dict[int, int] = {}
        self._drawn: list[_Drawn] = []
        self._tokens, self._parents, self._columns, self._row_of = [root], [0], [NO_COLUMN], [ONE_HOT]
        self.paths: list[tuple[int, ...]] = [()]

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, candidate: int, token: int, column: int) -> None:
        """A candidate."""
        depth = bisect.bisect_right(self._starts, candidate)
        family = self._families[depth - 1]
        row, place = divmod(candidate - self._starts[depth - 1], family.tokens.shape[1])
        parent = 0 if depth == 1 else self._node_of[self._expanded[depth - 2][row]]
        self._node_of[candidate] = len(self)
        nth = place - (family.tokens.shape[1] - family.samples)
        self.append(parent, token, column, None if nth < 0 else _Drawn(family, row, nth, column))

    def append(self, parent: int, token: int, column: int = NO_COLUMN, drawn: _Drawn | None = None) -> None:
        """A node: one that was picked, or one that was drawn."""
        self._row_of.append(ONE_HOT if drawn is None else len(self._drawn))
        if drawn is not None:
            self._drawn.append(drawn)
        self._tokens.append(token)
        self._parents.append(parent)
        self._columns.append(column)
        self.paths.append((*self.paths[parent], token))

    def was_expanded(self, candidate: int) -> bool:
        """Whether the model was run on it."""
        level = bisect.bisect_right(self._starts, candidate) - 1
        return level < len(self._expanded) and candidate in self._expanded[level]

    def finished(self, keys: Tensor, support: Tensor) -> DraftTree:
        """The tree, given the keys of its nodes."""
        laws = None
        if self._drawn:
            columns = torch.tensor(self._columns)
            laws = Laws(_law_rows(self._drawn), torch.tensor(self._row_of), columns, support)
        return DraftTree(
            torch.tensor(self._tokens),
            torch.tensor(self._parents),
            torch.tensor([len(path) for path in self.paths]),
            keys,
            laws,
        )


def best(keys: Tensor, count: int) -> Tensor:
    """Ids of the ``count`` largest keys, best first, ties to the smaller id (``topk`` promises no order for ties)."""
    return torch.argsort(keys, descending=True, stable=True)[:count]


def _split(values: list[int], sizes: list[int]) -> list[list[int]]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [values[start:end] for start, end in itertools.pairwise(ends)]


def _ranks(keys: Tensor, families: list[Family], sampling: Sampling | None) -> Tensor:
    """What candidates are decided on by, the largest first: their keys, which are 0 at most, and above them the places
    of early ones."""
    if sampling is None or sampling.early is None:
        return keys
    least = math.log(max(sampling.early, sys.float_info.min))
    # Early keys of a level lie above all of the next, those of 0 to ``least`` side by side.
    order = torch.cat([family.keys.reshape(-1) - level * (1.0 - least) for level, family in enumerate(families)])
    order.masked_fill_(keys < least, -torch.inf)
    first = best(order, sampling.early_nodes)
    places = torch.arange(len(first), 0, -1, device=keys.device, dtype=keys.dtype)
    return keys.index_copy(0, first, torch.where(order[first] > -torch.inf, places, keys[first]))


@dataclass(frozen=True)
class _Drawn:
    """A sampled node: the family it is in, the row of its parent there, which of the samples it is, and its column."""

    family: Family
    parent: int
    nth: int
    column: int


def _law_rows(drawn: list[_Drawn]) -> Tensor:
    """(R, D) laws of samples, in the order in which they became nodes."""
    pools = [node.family.pool for node in drawn if node.family.pool is not None]
    laws = torch.stack([pool[node.parent] for pool, node in zip(pools, drawn, strict=True)])
    rows, gone = [], []
    elder: dict[tuple[int, int], list[int]] = {}
    for row, node in enumerate(drawn):
        # What was drawn before a sample could not be drawn again; it has a larger key, so it is a node already.
        before = elder.setdefault((id(node.family), node.parent), [])
        rows += [row] * len(before)
        gone += before
        before.append(node.column)
    if rows:
        places, columns = sent(torch.tensor([rows, gone]), laws.device)
        laws[places, columns] = 0.0
    return laws.div_(laws.sum(-1, keepdim=True))
