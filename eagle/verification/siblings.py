"""The mathematics that all rules share: testing the children of a node in their order.

Notation of docs/hsd.md. At a node v that is to be accepted through with probability r, let m = r * p be the target
law after v times r, a measure over the vocabulary. For each child c with law q, in order:

    g = |m| + 1 - r                        the probability of getting as far as c
    c is given the weight min(1, m(c) / (g * q(c)))
    m <- max(m - g * q, 0)                 what its rejection leaves

and in the end v is accepted with probability |m| / (|m| + 1 - r), the next token drawn in proportion to m. (m and g
are the p and r of the recursion in the papers, before normalisation.) A child without a law of its own, picked rather
than drawn, has all its law on its token: its rejection sets m to 0 there and leaves the rest alone.

Nested max(. - a, 0) add up, so m is never stored: behind laws q_1 .. q_j it is max(r * p - sum of g_i * q_i, 0), less
the tokens of the picked children. Only its mass takes the whole draft vocabulary; outside of it m stays r * p.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent, wide_dtype
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws


@dataclass(frozen=True)
class Tested:
    """What testing the children of n nodes comes to.

    Attributes:
        weights: (n, w) of each child, given that its elder siblings were rejected; 0 where there is no child.
        stop: (n,) probability that the node itself is accepted, given that all its children were rejected.
        reached: (n, s) the g of each sampled child in order; 0 where there is none.
    """

    weights: Tensor
    stop: Tensor
    reached: Tensor


class Siblings:
    """The families of a tree, a row for each node that has children, w children at most.

    Args:
        tree: N nodes, of any laws.
        target_probs: (N, V) probabilities of the token after each node.
        by_level: whether the families of one depth have to be tested together, the shallowest first.

    Attributes:
        parents: (n,) int64 on the device, node ids.
        children: (n, w) int64 on the device, node ids; N where a parent has fewer.
        groups: the rows that are tested together, in order.
        row: for each parent's node id its row.
    """

    def __init__(self, tree: DraftTree, target_probs: Tensor, by_level: bool) -> None:
        self.tree, self.target_probs = tree, target_probs
        self.device, self.wide = target_probs.device, wide_dtype(target_probs.device)
        laws, depths = tree.laws, tree.depths.tolist()
        drawn = [False] * len(tree) if laws is None else (laws.row_of != ONE_HOT).tolist()
        families = [
            (depths[parent] if by_level else 0, -sum(drawn[child] for child in children), parent, children)
            for parent, children in enumerate(tree.children())
            if children
        ]
        # Within a group those with more samples come first, so what has a j-th sample is always a front part.
        families.sort()
        self._samples = [-negative for _, negative, _, _ in families]
        starts = [row for row in range(len(families)) if row == 0 or families[row][0] != families[row - 1][0]]
        self.groups = [slice(a, b) for a, b in itertools.pairwise([*starts, len(families)])]
        self.row = {parent: row for row, (_, _, parent, _) in enumerate(families)}
        self._look_up([(parent, children) for _, _, parent, children in families], drawn)

    def _look_up(self, families: list[tuple[int, list[int]]], drawn: list[bool]) -> None:
        """Fetch every probability that is needed, all rows at once; where it stands is reckoned on the host."""
        tree, probs, nobody = self.tree, self.target_probs, len(self.tree)
        tokens, vocabulary = tree.tokens.tolist(), probs.shape[1]
        width = max((len(children) for _, children in families), default=0)
        self._rejected = [[tokens[child] for child in children if not drawn[child]] for _, children in families]
        facts: list[list[int]] = []
        for parent, children in families:
            phases, possible = _facts(children, tokens, drawn)
            places = [parent * vocabulary + tokens[child] for child in children]
            picked = [int(not drawn[child]) for child in children]
            facts.append([parent, *_padded(children, width, nobody)])
            for values in (phases, picked, possible, places):
                facts[-1] += _padded(values, width)
        table = self._sent(facts).view(len(families), 1 + 5 * width)
        self.parents = table[:, 0]
        self.children, self._phase, picked_, possible_, places_ = table[:, 1:].unflatten(1, (5, width)).unbind(1)
        self._picked = picked_.to(self.wide)
        self._p = probs.take(places_).to(self.wide) * possible_
        self._own_q = torch.ones_like(self._p)
        if tree.laws is not None and any(self._samples):
            self._look_up_laws(tree.laws, families, drawn, width)

    def _look_up_laws(self, laws: Laws, families: list[tuple[int, list[int]]], drawn: list[bool], width: int) -> None:
        """The same for the laws."""
        row_of, columns, most = laws.row_of.tolist(), laws.columns.tolist(), max(self._samples)
        size = laws.rows.shape[1]
        facts: list[list[int]] = []
        for _, children in families:
            sampled = [place for place, child in enumerate(children) if drawn[child]]
            law_rows = _padded([row_of[children[place]] for place in sampled], most)
            facts.append([*law_rows, *_padded(sampled, most)])
            facts[-1] += _padded([int(columns[child] >= 0) for child in children], width)
            # What the child's own law, and each law of the family, says of it.
            known = [max(columns[child], 0) for child in children]
            own = [max(row_of[child], 0) * size + column for child, column in zip(children, known, strict=True)]
            facts[-1] += _padded(own, width)
            for law_row in law_rows:
                facts[-1] += _padded([law_row * size + column for column in known], width)
        table = self._sent(facts)
        self._law_rows, self._places = table[:, :most], table[:, most : 2 * most]
        self._host_law_rows = [row[:most] for row in facts]
        inside, places = table[:, 2 * most : 2 * most + width], table[:, 2 * most + width :]
        self._rows, self._support = laws.rows.to(self.device), laws.support.to(self.device)
        q = self._rows.take(places).to(self.wide).unflatten(1, (1 + most, width))
        self._own_q = torch.where(self._picked > 0, 1.0, q[:, 0])
        self._q = q[:, 1:] * inside[:, None]
        # Parents with samples only; a group's are its first rows.
        with_samples = [parent for (parent, _), count in zip(families, self._samples, strict=True) if count]
        starts = self._sent(with_samples) * self.target_probs.shape[1]
        self._inside = self.target_probs.take(starts[:, None] + self._support)
        self._outside = (1.0 - self._inside.sum(-1, keepdim=True).to(self.wide)).clamp_(min=0.0)
        self._inside_row = list(itertools.accumulate((int(count > 0) for count in self._samples), initial=0))

    def _sent(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """Host integers on the device."""
        return sent(torch.tensor(numbers, dtype=torch.int64), self.device)

    def of_nodes(self) -> tuple[Tensor, Tensor]:
        """(N,) target probabilities of the nodes' tokens after their parents, and (N,) these over the nodes' own laws;
        any values for the root. 0 / 0, a token that could not be drafted, is 0."""
        p, ratios = self._p.new_zeros(2, len(self.tree) + 1)
        p[self.children] = self._p
        ratios[self.children] = torch.where(self._p > 0, self._p / self._own_q, 0.0)
        return p[:-1], ratios[:-1]

    def test(self, group: slice, r: Tensor) -> Tested:
        """Test the children of a group of parents.

        Args:
            group: one of ``groups``.
            r: (n,) probability with which each of them is to be accepted through.
        """
        p, picked, own_q, phase = self._p[group], self._picked[group], self._own_q[group], self._phase[group]
        samples, tiny = self._samples[group], torch.finfo(self.wide).tiny
        r = r[:, None]
        total, short, m = r, 1.0 - r, r * p
        weights = torch.zeros_like(p)
        reached = r.new_zeros(len(r), max(self._samples))
        for j in range(samples[0] + 1):
            removed = m * picked
            before = (total + removed - removed.cumsum(1)).clamp_(min=0.0)
            g = before + short
            # Where nothing gets this far, m is 0 too.
            weight = (m / (g * own_q).clamp_(min=tiny)).clamp_(max=1.0)
            weights = weight if samples[0] == 0 else torch.where(phase == j, weight, weights)
            n = sum(count > j for count in samples)
            if n:
                reached[:n, j] = g[:n].gather(1, self._places[group][:n, j : j + 1])[:, 0]
                behind = self._masses(group, r[:n], reached[:n, : j + 1])
                total = behind if n == len(r) else torch.cat([behind, total[n:]])
                m = torch.addcmul(m, reached[:, j : j + 1], self._q[group][:, j], value=-1.0).clamp_(min=0.0)
        mass = (before[:, -1:] - removed[:, -1:]).clamp_(min=0.0)
        at_all = mass + short
        # 0 / 0, where everything was rejected that was sure to be accepted, is rounding: the node is accepted.
        stop = torch.where(at_all > 0, mass / at_all, 1.0)
        return Tested(weights, stop[:, 0], reached)

    def _masses(self, group: slice, r: Tensor, reached: Tensor) -> Tensor:
        """(n, 1), |m| of the first n parents of a group behind their first samples, picked children left in."""
        n, first, narrow = len(r), self._inside_row[group.start], self._rows.dtype
        left = r.to(narrow) * self._inside[first : first + n]
        for j, g in enumerate(reached.to(narrow).unbind(1)):
            left.addcmul_(self._rows.index_select(0, self._law_rows[group][:n, j]), g[:, None], value=-1.0)
        return torch.addcmul(
            left.clamp_(min=0.0).sum(-1, keepdim=True).to(self.wide), r, self._outside[first : first + n]
        )

    def remaining(self, node: int, r: Tensor, reached: Tensor) -> Tensor:
        """The m of a node after all its children were rejected.

        Args:
            node: its id.
            r: () probability with which it was to be accepted through.
            reached: (s,) of the node, see ``Tested``; not used for a node without children.

        Returns:
            (V,) weights of positive sum. Where nothing is left, the rejections were rounding (an event of probability
            about 1e-7), and the target law itself is what remains to draw from.
        """
        probs = self.target_probs[node]
        weights = r.to(probs.dtype) * probs
        row = self.row.get(node)
        if row is None:
            return torch.where(r > 0, weights, probs)
        for j in range(self._samples[row]):
            law = self._rows[self._host_law_rows[row][j]].to(probs.dtype)
            weights.index_add_(0, self._support, law * -reached[j])
        weights.clamp_(min=0.0).index_fill_(0, self._sent(self._rejected[row]), 0.0)
        return torch.where(weights.sum() > 0, weights, probs)


def _facts(children: list[int], tokens: list[int], drawn: list[bool]) -> tuple[list[int], list[int]]:
    """Of each child in order: how many drawn elders it has, and whether its token can still be accepted, which it
    cannot behind an elder that was picked for the same one."""
    phase, gone = 0, set()
    phases, possible = [], []
    for child in children:
        phases.append(phase)
        possible.append(int(tokens[child] not in gone))
        if drawn[child]:
            phase += 1
        else:
            gone.add(tokens[child])
    return phases, possible


def _padded(values: list[int], width: int, fill: int = 0) -> list[int]:
    return values + [fill] * (width - len(values))
