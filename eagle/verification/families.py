"""What verification looks up: probabilities of drafted tokens, all at once, and masses behind laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent, wide_dtype
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws


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
        self.target_probs = target_probs
        self._device, self._wide = target_probs.device, wide_dtype(target_probs.device)
        self._tokens = tree.tokens.tolist()
        children = {parent: each for parent, each in enumerate(tree.children()) if each}
        row_of = [ONE_HOT] * len(tree) if tree.laws is None else tree.laws.row_of.tolist()
        laws = {parent: [row_of[child] for child in each] for parent, each in children.items()}
        size = target_probs.shape[1]
        places = [parent * size + self._tokens[child] for parent, each in children.items() for child in each]
        facts = [target_probs[:, 0], target_probs.take(self._sent(places))]
        if tree.laws is not None:
            facts.append(self._take_laws(tree.laws, children, laws))
        numbers = iter(torch.cat([fact.to(self._wide) for fact in facts]).tolist())
        self.probe = list(itertools.islice(numbers, len(tree)))
        p = {parent: list(itertools.islice(numbers, len(each))) for parent, each in children.items()}
        self.of = {
            parent: Family(
                parent,
                each,
                self._possible(p[parent], each, laws[parent]),
                laws[parent],
                [list(itertools.islice(numbers, len(each))) for law in laws[parent] if law != ONE_HOT],
            )
            for parent, each in children.items()
        }

    def _take_laws(self, laws: Laws, children: dict[int, list[int]], law_of: dict[int, list[int]]) -> Tensor:
        """What the laws of each family say of its children's tokens, and what masses are reckoned from."""
        columns, size = laws.columns.tolist(), laws.rows.shape[1]
        drawn = [parent for parent, rows in law_of.items() if max(rows) != ONE_HOT]
        self._row = {parent: row for row, parent in enumerate(drawn)}
        starts = [parent * self.target_probs.shape[1] for parent in drawn]
        asked = [
            (law, columns[c]) for parent in drawn for law in law_of[parent] if law != ONE_HOT for c in children[parent]
        ]
        table = self._sent([*starts, *(law * size + max(column, 0) for law, column in asked)])
        known = self._sent([int(column >= 0) for _, column in asked])
        self._rows, self._support = laws.rows.to(self._device), laws.support.to(self._device)
        self._inside = self.target_probs.take(table[: len(drawn), None] + self._support)
        self._outside = (1.0 - self._inside.sum(-1).to(self._wide)).clamp_(min=0.0)
        return self._rows.take(table[len(drawn) :]) * known

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
        # Those behind more laws come first, so that what has a j-th law is a front part.
        order = sorted(range(len(questions)), key=lambda place: -len(questions[place].reached))
        asked = [questions[place] for place in order]
        most, narrow = len(asked[0].reached), self._rows.dtype
        rows = [self._row[question.family.parent] for question in asked]
        numbers = [[question.r, *_padded(question.reached, most)] for question in asked]
        scales = sent(torch.tensor(numbers, dtype=self._wide), self._device)
        left = self._rows_of(self._inside, rows) * scales[:, :1].to(narrow)
        for j in range(most):
            laws = [question.family.drawn_from[j] for question in asked if len(question.reached) > j]
            claimed = self._rows_of(self._rows, laws)
            left[: len(laws)].addcmul_(claimed, scales[: len(laws), j + 1, None].to(narrow), value=-1.0)
        found = (
            left.clamp_(min=0.0).sum(-1).to(self._wide) + scales[:, 0] * self._rows_of(self._outside, rows)
        ).tolist()
        return [mass for _, mass in sorted(zip(order, found, strict=True))]

    def _rows_of(self, table: Tensor, rows: list[int]) -> Tensor:
        """Rows of a table; not copied where they lie behind each other."""
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return table[rows[0] : rows[0] + len(rows)]
        return table.index_select(0, self._sent(rows))

    def remaining(self, node: int, r: float, reached: Sequence[float]) -> Tensor:
        """What is left of the target law at a node after all its children were rejected.

        Args:
            node: its id.
            r: the probability with which it was to be accepted through.
            reached: the g of each of its drawn children; not used for a node without children.

        Returns:
            (V,) weights of positive sum. Where nothing is left, the rejections were rounding (an event of probability
            about 1e-7), and the target law itself is what remains to draw from.
        """
        probs, family = self.target_probs[node], self.of.get(node)
        if family is None:
            return r * probs if r > 0.0 else probs
        weights = r * probs
        for law, g in zip(family.drawn_from, reached, strict=True):
            weights.index_add_(0, self._support, self._rows[law].to(probs.dtype), alpha=-g)
        picked = [
            self._tokens[child] for child, law in zip(family.children, family.laws, strict=True) if law == ONE_HOT
        ]
        weights.clamp_(min=0.0).index_fill_(0, self._sent(picked), 0.0)
        return torch.where(weights.sum() > 0, weights, probs)


def _padded(values: Sequence[float], width: int) -> list[float]:
    return [*values, *[0.0] * (width - len(values))]
