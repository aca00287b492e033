"""What verification looks up: probabilities of drafted tokens, all at once, and masses behind laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent, wide_dtype
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws

# What the target law is worth where weights remain. Of the points of [0, 1) in double precision only 0 lies within it.
NOTHING = 1e-25


@dataclass(frozen=True)
class Family:
    """The w children of a node, in the order of verification.

    Attributes:
        parent: node id.
        children: (w,) node ids.
        p: (w,) the target's probability of each one's token; 0 behind an elder that was picked for the same token.
        laws: (w,) the row of the law that each was drawn from; ``ONE_HOT`` of one that was picked.
        q: of each child that was drawn, in order, (w,) what its law says of all children's tokens.
    """

    parent: int
    children: list[int]
    p: list[float]
    laws: list[int]
    q: list[list[float]]

    @property
    def drawn_from(self) -> list[int]:
        """The rows of its laws, in order."""
        return [law for law in self.laws if law != ONE_HOT]

    @property
    def ratios(self) -> list[float]:
        """(w,) p over what each child's own law says of its token; 0 / 0, a token that could not be drafted, is 0."""
        laws = iter(self.q)
        q = [1.0 if law == ONE_HOT else next(laws)[place] for place, law in enumerate(self.laws)]
        return [0.0 if p == 0.0 else p / own if own > 0.0 else math.inf for p, own in zip(self.p, q, strict=True)]


@dataclass(frozen=True)
class Behind:
    """The question how much is left of a target law behind the first laws of a family: the sum over the vocabulary of
    max(r p - sum of g_i q_i, 0).

    Attributes:
        family: any with laws.
        r: the probability with which the parent is to be accepted through.
        reached: the g of each of these laws, in order.
    """

    family: Family
    r: float
    reached: tuple[float, ...]


class Families:
    """The families of a tree. One transfer to the host.

    Args:
        tree: N nodes, of any laws.
        target_probs: (N, V) probabilities of the token after each node.

    Attributes:
        of: by the parent's id.
        probe: for each node an entry of its target probabilities, which is not finite where any of them is not.
    """

    def __init__(self, tree: DraftTree, target_probs: Tensor) -> None:
        self.target_probs, self._device = target_probs, target_probs.device
        self._tokens = tree.tokens.tolist()
        children = {parent: each for parent, each in enumerate(tree.children) if each}
        row_of = [ONE_HOT] * len(tree) if tree.laws is None else tree.laws.row_of.tolist()
        laws = {parent: [row_of[child] for child in each] for parent, each in children.items()}
        size = target_probs.shape[1]
        places = [parent * size + self._tokens[child] for parent, each in children.items() for child in each]
        numbers, said = self._numbers(places, tree.laws, children, laws)
        self.probe = list(itertools.islice(numbers, len(tree)))
        p = {parent: list(itertools.islice(numbers, len(each))) for parent, each in children.items()}
        self._outside = {parent: max(1.0 - next(numbers), 0.0) for parent in self._row}
        self.of = {
            parent: Family(
                parent,
                each,
                self._possible(p[parent], each, laws[parent]),
                laws[parent],
                [list(itertools.islice(said, len(each))) for law in laws[parent] if law != ONE_HOT],
            )
            for parent, each in children.items()
        }

    def _numbers(
        self, places: list[int], laws: Laws | None, children: dict[int, list[int]], law_of: dict[int, list[int]]
    ) -> tuple[Iterator[float], Iterator[float]]:
        """An entry of each target law, those at ``places``, and how much of each that drawn children belong to is on
        the draft vocabulary; and what the laws of each family say of its children's tokens. Lays the table of what
        masses are reckoned from."""
        self._row: dict[int, int] = {}
        probs = self.target_probs
        drawn = [parent for parent, rows in law_of.items() if max(rows) != ONE_HOT]
        if laws is None or not drawn:
            return iter(torch.cat([probs[:, 0], probs.take(self._sent(places))]).tolist()), iter(())
        columns, size = laws.columns.tolist(), laws.rows.shape[1]
        self._row = {parent: row for row, parent in enumerate(drawn)}
        starts = [parent * probs.shape[1] for parent in drawn]
        asked = [
            (law, columns[c]) for parent in drawn for law in law_of[parent] if law != ONE_HOT for c in children[parent]
        ]
        entries = [law * size + max(column, 0) for law, column in asked]
        ids, rows, begins = self._sent([*places, *entries, *starts]).split([len(places), len(asked), len(drawn)])
        self._rows, self._support = laws.rows.to(self._device), laws.support.to(self._device)
        inside = probs.take(begins[:, None] + self._support)
        # In double precision: products in float32 may be done in less, where torch is told so.
        table = torch.empty(0, dtype=wide_dtype(self._device), device=self._device)
        self._table = torch.cat([inside, self._rows], out=table)
        found = torch.cat([probs[:, 0], probs.take(ids), inside.sum(-1), self._rows.take(rows)]).tolist()
        if any(math.isnan(number) for number in found):
            # A target law that is none is refused where a walk visits it; it must not reach others through products.
            self._table.nan_to_num_(0.0)
        said = [q if column >= 0 else 0.0 for q, (_, column) in zip(found[-len(asked) :], asked, strict=True)]
        return iter(found[: -len(asked)]), iter(said)

    def _possible(self, p: list[float], children: list[int], laws: list[int]) -> list[float]:
        """The probabilities of children's tokens, 0 where an elder was picked for the same one."""
        picked: set[int] = set()
        for place, child in enumerate(children):
            if self._tokens[child] in picked:
                p[place] = 0.0
            elif laws[place] == ONE_HOT:
                picked.add(self._tokens[child])
        return p

    def _sent(self, numbers: Sequence[int]) -> Tensor:
        """Host integers on the device."""
        return sent(torch.tensor(numbers, dtype=torch.int64), self._device)

    def masses(self, questions: Sequence[Behind]) -> list[float]:
        """The answers, reckoned and fetched together."""
        if not questions:
            return []
        targets = len(self._row)
        factors = []
        for question in questions:
            row = [0.0] * len(self._table)
            row[self._row[question.family.parent]] = question.r
            # Of the laws of a family those that were reached so far are the first.
            laws = question.family.drawn_from[: len(question.reached)]
            for law, g in zip(laws, question.reached, strict=True):
                row[targets + law] -= g
            factors.append(row)
        left = sent(torch.tensor(factors, dtype=self._table.dtype), self._device) @ self._table
        inside = left.clamp_(min=0.0).sum(-1).tolist()
        return [
            mass + question.r * self._outside[question.family.parent]
            for mass, question in zip(inside, questions, strict=True)
        ]

    def remaining(self, node: int, r: float, reached: Sequence[float]) -> Tensor:
        """What is left of the target law at a node after all its children were rejected.

        Args:
            node: its id.
            r: the probability with which it was to be accepted through.
            reached: the g of each of its drawn children; not used for a node without children.

        Returns:
            (V,) weights of positive sum, not to be written to. Where nothing is left, the rejections were rounding (an
            event of probability about 1e-7), and the target law itself is what remains to draw from.
        """
        probs, family = self.target_probs[node], self.of.get(node)
        if family is None:
            return probs
        weights = r * probs
        for law, g in zip(family.drawn_from, reached, strict=True):
            weights.index_add_(0, self._support, self._rows[law].to(probs.dtype), alpha=-g)
        picked = [
            self._tokens[child] for child, law in zip(family.children, family.laws, strict=True) if law == ONE_HOT
        ]
        # Next to whatever is left, the target law that is added is nothing.
        return weights.clamp_(min=0.0).index_fill_(0, self._sent(picked), 0.0).add_(probs, alpha=NOTHING)
