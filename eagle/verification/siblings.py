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
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.model.sampling import wide_dtype
from eagle.model.tree import ONE_HOT, DraftTree, Laws


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
        """Fetch every probability that is needed, all rows at once."""
        tree, probs, nobody = self.tree, self.target_probs, len(self.tree)
        tokens = tree.tokens.tolist()
        self._rejected = [[child for child in children if not drawn[child]] for _, children in families]
        structure = [_structure([(tokens[child], drawn[child]) for child in children]) for _, children in families]
        children = _padded([children for _, children in families], nobody)
        host = torch.stack(
            [
                children,
                torch.cat([tree.tokens, torch.zeros(1, dtype=torch.int64)])[children],
                *(_padded([facts[fact] for facts in structure], 0) for fact in range(3)),
            ]
        ).to(self.device)
        self.children, self._tokens, self._phase, picked, possible = host.unbind()
        self._picked = picked.to(self.wide)
        self.parents = torch.tensor([parent for parent, _ in families], dtype=torch.int64).to(self.device)
        self._p = probs[self.parents[:, None], self._tokens].to(self.wide) * possible
        self._own_q = torch.ones_like(self._p)
        if tree.laws is not None and any(self._samples):
            samples = [[child for child in children if drawn[child]] for _, children in families]
            places = [[place for place, child in enumerate(children) if drawn[child]] for _, children in families]
            self._look_up_laws(tree.laws, children, _padded(samples, nobody), _padded(places, 0))

    def _look_up_laws(self, laws: Laws, children: Tensor, samples: Tensor, places: Tensor) -> None:
        """The same for the laws: ``samples`` (n, s) are the ids of each family's samples, ``places`` where among the
        children they stand."""
        nobody = torch.tensor([ONE_HOT])
        row_of, columns = torch.cat([laws.row_of, nobody]), torch.cat([laws.columns, nobody])
        own, columns, law_rows, inside, sampled = (
            values.to(self.device)
            for values in (
                row_of[children],
                columns[children].clamp(min=0),
                row_of[samples].clamp(min=0),
                columns[children] >= 0,
                torch.tensor([row for row, count in enumerate(self._samples) if count]),
            )
        )
        self._rows, self._law_rows, self._places = laws.rows.to(self.device), law_rows, places.to(self.device)
        self._support = laws.support.to(self.device)
        # (n, s, w): what each law of a family says of each of its children.
        self._q = self._rows[law_rows[:, :, None], columns[:, None, :]].to(self.wide) * inside[:, None]
        self._own_q = torch.where(own == ONE_HOT, self._own_q, self._rows[own, columns].to(self.wide))
        self._inside = self.target_probs[self.parents[sampled, None], self._support]
        self._outside = (1.0 - self._inside.sum(-1).to(self.wide)).clamp(min=0.0)
        self._inside_row = list(itertools.accumulate((int(count > 0) for count in self._samples), initial=0))

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
        p, picked, phase = self._p[group], self._picked[group], self._phase[group]
        samples, short, total = self._samples[group], (1.0 - r)[:, None], r[:, None]
        used, weights = torch.zeros_like(p), torch.zeros_like(p)
        reached: list[Tensor] = []
        for j in range(samples[0] + 1):
            m = (r[:, None] * p - used).clamp(min=0.0)
            removed = m * picked
            mass = (total - removed.cumsum(1)).clamp(min=0.0)
            g = mass + removed + short
            scale = g * self._own_q[group]
            weight = torch.where(scale > 0, m / scale, 0.0).clamp(max=1.0)
            weights = torch.where(phase == j, weight, weights)
            n = sum(count > j for count in samples)
            if n:
                reached.append(g[:n].gather(1, self._places[group][:n, j : j + 1]))
                used = torch.cat([used[:n] + reached[j] * self._q[group][:n, j], used[n:]])
                total = torch.cat([self._mass(group, r[:n], reached), total[n:]])
        mass = mass[:, -1:]
        # 0 / 0 is p = q with r = 1: then the node is accepted through for certain.
        stop = torch.where(mass + short > 0, mass / (mass + short), 1.0)
        all_reached = r.new_zeros(len(r), max(self._samples))
        for j, g in enumerate(reached):
            all_reached[: len(g), j] = g[:, 0]
        return Tested(weights, stop[:, 0], all_reached)

    def _mass(self, group: slice, r: Tensor, reached: list[Tensor]) -> Tensor:
        """(n, 1), |m| of the first n parents of a group behind their first samples, picked children left in."""
        n, first = len(r), self._inside_row[group.start]
        law = self._rows[self._law_rows[group][:n, : len(reached)]]
        gone = sum(g[:n].to(law.dtype) * law[:, j] for j, g in enumerate(reached))
        left = (r[:, None].to(law.dtype) * self._inside[first : first + n] - gone).clamp_(min=0.0)
        return r[:, None] * self._outside[first : first + n, None] + left.sum(-1, keepdim=True).to(self.wide)

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
        probs = self.target_probs[node].to(self.wide)
        weights = r * probs
        row = self.row.get(node)
        if row is None:
            return torch.where(r > 0, weights, probs)
        for j in range(self._samples[row]):
            weights.index_add_(0, self._support, -reached[j] * self._rows[self._law_rows[row, j]].to(self.wide))
        weights.clamp_(min=0.0).index_fill_(0, self.tree.tokens[self._rejected[row]].to(self.device), 0.0)
        return torch.where(weights.sum() > 0, weights, probs)


def _structure(children: list[tuple[int, bool]]) -> tuple[list[int], list[int], list[int]]:
    """Of (token, whether drawn) for each child in order: how many drawn elders it has, whether it was picked, and
    whether its token can still be accepted, which it cannot behind an elder that was picked for the same one."""
    phase, gone = 0, set()
    phases, picked, possible = [], [], []
    for token, drawn in children:
        phases.append(phase)
        picked.append(int(not drawn))
        possible.append(int(token not in gone))
        phase += drawn
        if not drawn:
            gone.add(token)
    return phases, picked, possible


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    """(len(rows), longest) int64 on the host."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.int64).view(len(rows), width)
