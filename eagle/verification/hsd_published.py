"""The acceptance rule of the published HSD code, for reproduction. It is lossy.

What that code does (``EAGLE-3H/eagle/model/utils.py`` and ``simulation.py`` of its repository), in this package's
words: a root-to-leaf path is attempted as a whole. Its leaf is accepted with the joint ratio of the attempt,
*uncapped*; failing that, from the last inner node upwards, each is kept with the probability that belongs to the
*capped* ratio, so the two do not make up for each other. The attempt's first node left standing becomes the start of
the next attempt, through its next child, with the rejected tokens removed from its target law but with its own weight
as it was before they were rejected.

With p=(1/3, 2/3), q=(2/3, 1/3) and two drafted tokens it accepts 12/9 (at most 11/9 can be accepted losslessly), and
its output is 1/9 away from the target in total variation.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from eagle.devices import wide_dtype
from eagle.errors import InputError
from eagle.tree.draft_tree import ONE_HOT, DraftTree
from eagle.verification.families import Families
from eagle.verification.siblings import weigh
from eagle.verification.verdict import Plan, Rule, Toss, refuse_not_finite


@functools.cache
def _warn() -> None:
    warnings.warn(
        "hsd_published reproduces the published HSD code and is lossy: its output does not have the target's law",
        stacklevel=3,
    )


class PublishedPlan(Plan):
    """The published rule on a chain of any laws, on a deterministic tree, or on several sampled paths.

    Raises:
        InputError: a tree with picked and sampled children, which the published code does not draft.
    """

    def __init__(self, tree: DraftTree, target_probs: Tensor) -> None:
        super().__init__(tree, target_probs)
        self._wide = wide_dtype(target_probs.device)
        _warn()
        branches = any(len(children) > 1 for children in self.children)
        drawn = [] if tree.laws is None else (tree.laws.row_of[1:] != ONE_HOT).tolist()
        sampled = any(drawn)
        if branches and sampled and not all(drawn):
            raise InputError(
                "hsd_published verifies a chain, a deterministic tree or sampled paths; use tree='deterministic', "
                "tree='chain' or tree='paths'"
            )
        self._families = families = Families(tree, target_probs)
        # Of each attempt's path the uncapped ratio, begun anew at each attempt, and the capped one, which is not.
        self._ratio, capped = [1.0] * len(tree), [1.0] * len(tree)
        for node, children in enumerate(self.children):
            rejected = 0.0
            steps = self._sampled_steps(node) if branches and sampled else None
            for place, child in enumerate(children):
                p = families.of[node].p[place]
                if place == 0:
                    step = families.of[node].ratios[0]
                    self._ratio[child] = self._ratio[node] * step
                elif steps is not None:
                    step = self._ratio[child] = steps[place]
                else:
                    step = self._ratio[child] = p / (1.0 - rejected) if rejected < 1.0 else 0.0
                capped[child] = min(1.0, capped[node] * step)
                rejected += p
        self._r, self._keep = capped, [1.0] * len(tree)
        self._weighed = weigh(families, {parent: capped[parent] for parent in families.of})
        for parent, family in families.of.items():
            # Kept, or not, as if its first child were its only one.
            r, first, p = capped[parent], family.children[0], family.p[0]
            if not branches:
                self._keep[parent] = self._weighed.stop[parent]
            elif r < 1.0 and sampled:
                mass = float((r * target_probs[parent].to(self._wide) - self._law(first)).clamp(min=0.0).sum())
                self._keep[parent] = mass / (mass + 1.0 - r)
            else:
                self._keep[parent] = r * (1.0 - p) / (1.0 - r * p) if r < 1.0 else 1.0

    def _law(self, node: int) -> Tensor:
        """(V,) law of a sampled node."""
        laws = self.tree.laws
        if laws is None:
            raise ValueError("a tree without sampled nodes has no laws")
        whole = self.target_probs.new_zeros(self.target_probs.shape[1], dtype=self._wide)
        return whole.index_copy_(0, laws.support, laws.rows[laws.row_of[node]].to(whole.dtype))

    def _sampled_steps(self, node: int) -> list[float]:
        """For each child what the rejection of its elders left of the target's law, over its own law."""
        left, steps = self.target_probs[node].to(self._wide), []
        for child in self.children[node]:
            law, token = self._law(child), int(self.tree.tokens[child])
            q = float(law[token])
            steps.append(float(left[token]) / q if q > 0 else 0.0)
            left = (left - law).clamp(min=0.0)
            mass = left.sum()
            left = torch.where(mass > 0, left / mass, self.target_probs[node].to(left.dtype))
        return steps

    def walk(self, toss: Toss) -> int:
        """See ``Plan.walk``."""
        node, to_try = 0, list(self.children[0])
        refuse_not_finite(node, self._families.probe[node])
        while to_try:
            end = self._attempt(to_try.pop(0), toss)
            if end is not None:
                node, to_try = end, list(self.children[end][1:])
        return node

    def _attempt(self, start: int, toss: Toss) -> int | None:
        """The node that an attempt along first children from ``start`` leaves standing, if any."""
        path = [start]
        while self.children[path[-1]]:
            path.append(self.children[path[-1]][0])
        for node in path:
            refuse_not_finite(node, self._families.probe[node])
        if toss(min(1.0, self._ratio[path[-1]])):
            return path[-1]
        return next((node for node in reversed(path[:-1]) if toss(self._keep[node])), None)

    def remaining(self, node: int) -> Tensor:
        """See ``Plan.remaining``."""
        return self._families.remaining(node, self._r[node], self._weighed.reached.get(node, ()))


RULE = Rule("hsd_published", PublishedPlan, lossless=False)
