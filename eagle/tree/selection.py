"""Which of the candidates of all levels become nodes of a tree."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent
from eagle.errors import InputError
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws
from eagle.tree.retrieval import NO_COLUMN, Retrieval, Tail
from eagle.tree.shape import Sampling, TreeShape, reaches


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
    """What may become nodes of a tree, on the drafter's device.

    Attributes:
        families: of each level, the root's first.
        frontiers: for each level below the root that was expanded, which of its candidates were.
        facts: of all candidates, level by level, their keys, then their tokens, then their columns, and then the
            frontiers; in the dtype of keys, in which all ids are exact.
    """

    families: list[Family]
    frontiers: list[Tensor]
    facts: Tensor


def gathered(families: list[Family], frontiers: list[Tensor]) -> Candidates:
    """The candidates of all levels, to be fetched at once; see ``Candidates``."""
    facts = [family.keys for family in families]
    facts += [family.tokens for family in families]
    facts += [family.columns for family in families]
    return Candidates(families, frontiers, torch.cat([each.reshape(-1) for each in facts + frontiers]))


def select(
    root: int, found: Candidates, support: Tensor, shape: TreeShape, retrieval: Retrieval | None = None
) -> DraftTree:
    """The tree of the candidates that are decided on first. One transfer to the host.

    No key is above the parent's, and ties go to the elder, so parents come before their children, and what stays is
    decided by nodes before it.

    Args:
        root: last committed token.
        found: the candidates.
        support: (draft vocabulary,) int64, the target id of each draft id.
        shape: bounds of the tree.
        retrieval: what is looked up behind nodes that were not expanded.

    Raises:
        InputError: keys with NaN.
    """
    count = sum(family.tokens.numel() for family in found.families)
    sizes = [count, count, count, *(len(frontier) for frontier in found.frontiers)]
    keys, tokens, columns, *frontiers = _split(found.facts.tolist(), sizes)
    # No key is +inf, so only NaN makes a sum NaN.
    if math.isnan(sum(keys)):
        raise InputError("the drafter's logits contain NaN; check its weights, or load the pair in a wider dtype")
    tree = _Nodes(root, found.families, frontiers)
    tail = None if retrieval is None else Tail(retrieval)
    tree_keys = [0.0]

    def fill(key: float) -> None:
        """Nodes that were looked up and are decided on before anything of this key."""
        while tail is not None and tail.largest > key and not shape.enough(len(tree), tail.largest):
            parent, token, own = tail.take()
            tree.append(parent, token)
            tree_keys.append(own)
            tail.look(len(tree) - 1, tree.paths[-1], own)

    for candidate, early in _order(keys, tree.level_of, shape.sampling):
        key = keys[candidate]
        fill(0.0 if early else key)
        # Those that do not exist come last.
        if key == -math.inf or shape.enough(len(tree), 0.0 if early else key):
            break
        tree.add(candidate, int(tokens[candidate]), int(columns[candidate]))
        tree_keys.append(key)
        if tail is not None and not tree.was_expanded(candidate):
            tail.look(len(tree) - 1, tree.paths[-1], key)
    fill(-math.inf)
    return tree.finished(torch.tensor(tree_keys, dtype=found.facts.dtype), support)


def _order(
    keys: Sequence[float], level_of: Callable[[int], int], sampling: Sampling | None
) -> Iterator[tuple[int, bool]]:
    """Candidates in the order in which they are decided on, and whether they are early ones: those come first, level by
    level; then the largest keys, ties going to the elder."""
    by_key = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
    first: list[int] = []
    if sampling is not None and sampling.early is not None:
        bound = sampling.early
        likely = itertools.takewhile(lambda candidate: reaches(keys[candidate], bound), by_key)
        first = sorted(likely, key=level_of)[: sampling.early_nodes]
    early = frozenset(first)
    yield from ((candidate, True) for candidate in first)
    yield from ((candidate, False) for candidate in by_key if candidate not in early)


class _Nodes:
    """The nodes of a tree that is put together.

    Args:
        root: last committed token.
        families: of each level.
        frontiers: for each level below the root that was expanded, which of its candidates were, in order.
    """

    def __init__(self, root: int, families: list[Family], frontiers: list[list[float]]) -> None:
        self._families = families
        # Candidates are counted through all levels.
        self._starts = list(itertools.accumulate((family.tokens.numel() for family in families), initial=0))
        self._expanded = [
            [start + int(place) for place in places]
            for start, places in zip(self._starts[: len(frontiers)], frontiers, strict=True)
        ]
        self._node_of: dict[int, int] = {}
        self._drawn: list[_Drawn] = []
        self._tokens, self._parents, self._columns, self._row_of = [root], [0], [NO_COLUMN], [ONE_HOT]
        self.paths: list[tuple[int, ...]] = [()]

    def __len__(self) -> int:
        return len(self._tokens)

    def level_of(self, candidate: int) -> int:
        """How many levels lie between a candidate and the root."""
        return bisect.bisect_right(self._starts, candidate) - 1

    def add(self, candidate: int, token: int, column: int) -> None:
        """A candidate."""
        depth = self.level_of(candidate) + 1
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
        level = self.level_of(candidate)
        return level < len(self._expanded) and candidate in self._expanded[level]

    def finished(self, keys: Tensor, support: Tensor) -> DraftTree:
        """The tree, given the keys of its nodes."""
        levels = [len(path) for path in self.paths]
        of_nodes = torch.tensor([self._tokens, self._parents, levels, self._row_of, self._columns])
        tokens, parents, depths, row_of, columns = of_nodes.unbind()
        laws = Laws(_law_rows(self._drawn), row_of, columns, support) if self._drawn else None
        return DraftTree(tokens, parents, depths, keys, laws)


def _split(values: list[float], sizes: list[int]) -> list[list[float]]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [values[start:end] for start, end in itertools.pairwise(ends)]


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
