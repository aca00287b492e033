"""Exact output laws of verification rules: how a rule is admitted.

On a small vocabulary every draw of the drafter is enumerated, every tree so drawn is pushed through every fall of the
rule's coins, and what is emitted is completed with the target's own law to a fixed length. What comes out is the
exact law of the text, to compare with the target's, and the exact expected accepted length. Nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eagle.tree.draft_tree import DraftTree
from eagle.verification import Rule
from eagle.verification.naive_hsd import carried, modified_target
from eagle.verification.verdict import Plan, endings

Path = tuple[int, ...]
Table = Callable[[Path], Tensor]
"""(V,) float64 law of the token after a path of tokens below the root."""
Choose = Callable[[Tensor], tuple[Tensor, Tensor]]
"""See ``eagle.tree.chance.Choose``."""


@dataclass(frozen=True)
class Case:
    """A target, a draft, and a way to draft a tree.

    Attributes:
        name: for the table.
        target: the target's laws.
        draft: the draft's laws.
        make: drafts a tree, drawing with what it is given.
        length: tokens of text to compare; at least the tree's levels + 1.
    """

    name: str
    target: Table
    draft: Table
    make: Callable[[Choose], DraftTree]
    length: int

    @cached_property
    def trees(self) -> list[tuple[float, DraftTree]]:
        """The trees that can be drafted, and their probabilities."""
        return every_draw(self.make)


@dataclass(frozen=True)
class Exact:
    """What a rule does in a case.

    Attributes:
        expected_length: expected accepted length of a round.
        distance: total variation between the law of the text and the target's.
    """

    expected_length: float
    distance: float


def every_draw(make: Callable[[Choose], DraftTree]) -> list[tuple[float, DraftTree]]:
    """Run a drafter once for each way its draws can go; returns the different trees and their probabilities."""
    found: dict[tuple[str, str, str], tuple[float, DraftTree]] = {}
    to_follow: list[tuple[int, ...]] = [()]
    while to_follow:
        script = to_follow.pop()
        chosen: list[int] = []
        probability = 1.0

        def choose(
            weights: Tensor, script: tuple[int, ...] = script, chosen: list[int] = chosen
        ) -> tuple[Tensor, Tensor]:
            nonlocal probability
            columns = []
            for row in weights.tolist():
                possible = [column for column, weight in enumerate(row) if weight > 0]
                if not possible:
                    columns.append(0)
                    continue
                place = len(chosen)
                if place >= len(script):
                    to_follow.extend((*chosen, other) for other in possible[1:])
                chosen.append(script[place] if place < len(script) else possible[0])
                columns.append(chosen[-1])
                probability *= row[chosen[-1]] / math.fsum(row)
            return torch.tensor(columns)[:, None], weights.sum(-1, keepdim=True)

        tree = make(choose)
        laws = tree.laws
        of_samples = "" if laws is None else str((laws.row_of.tolist(), laws.rows.tolist()))
        same = (str(tree.tokens.tolist()), str(tree.parents.tolist()), of_samples)
        found[same] = (found[same][0] + probability if same in found else probability, tree)
    return list(found.values())


def paths_of(tree: DraftTree) -> list[Path]:
    """The tokens from below the root down to each node."""
    paths: list[Path] = [()]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


def exact(case: Case, rules: Sequence[Rule]) -> dict[str, Exact]:
    """What each rule does in a case, by enumeration.

    Args:
        case: its trees need to be small: their number is exponential in the draws.
        rules: to look at.
    """
    trees = case.trees
    wanted = text_law(case.target, {(): 1.0}, case.length)
    results = {}
    for rule in rules:
        begun: dict[Path, float] = {}
        accepted = 0.0
        for weight, tree in trees:
            target_probs = torch.stack([case.target(path) for path in paths_of(tree)])
            plan = rule.plan(tree, target_probs)
            for (path, token), share in outcomes(tree, plan).items():
                accepted += weight * share * len(path)
                follows = (
                    _continued(case, tree, target_probs, path, token)
                    if rule.follows_every_prefix
                    else {(*path, token): 1.0}
                )
                for text, rest in follows.items():
                    begun[text] = begun.get(text, 0.0) + weight * share * rest
        results[rule.name] = Exact(accepted, distance(text_law(case.target, begun, case.length), wanted))
    return results


def outcomes(tree: DraftTree, plan: Plan) -> dict[tuple[Path, int], float]:
    """Probability of each accepted path of tokens and the next token, of those that can come about."""
    paths = paths_of(tree)
    law: dict[tuple[Path, int], float] = {}
    for node, chance in endings(plan):
        following = plan.remaining(node)
        for token, share in enumerate((following / following.sum()).tolist()):
            if chance * share > 0:
                law[paths[node], token] = law.get((paths[node], token), 0.0) + chance * share
    return law


def text_law(target: Table, begun: dict[Path, float], length: int) -> dict[Path, float]:
    """The law of texts of ``length`` tokens: beginnings and their probabilities, completed with the target."""
    law: dict[Path, float] = {}
    for path, weight in begun.items():
        law[path[:length]] = law.get(path[:length], 0.0) + weight
    for short in range(length):
        for path in [path for path in law if len(path) == short]:
            weight = law.pop(path)
            for token, p in enumerate(target(path).tolist()):
                if weight * p > 0:
                    law[*path, token] = law.get((*path, token), 0.0) + weight * p
    return law


def distance(one: dict[Path, float], other: dict[Path, float]) -> float:
    """Total variation distance of two laws."""
    return 0.5 * math.fsum(abs(one.get(path, 0.0) - other.get(path, 0.0)) for path in one.keys() | other.keys())


def _continued(case: Case, tree: DraftTree, target_probs: Tensor, path: Path, token: int) -> dict[Path, float]:
    """What ``naive_hsd`` emits behind a round's last token before the target takes over: its modified target is carried
    on to the length of the chain."""
    done: dict[Path, float] = {}
    going = [((*path, token), 1.0, carried(tree, target_probs, len(path), token))]
    while going:
        text, weight, state = going.pop()
        if state.over:
            done[text] = done.get(text, 0.0) + weight
            continue
        p, q = case.target(text), case.draft(text)
        for following, share in enumerate(modified_target(p, q, state.ratio).tolist()):
            if weight * share > 0:
                going.append(((*text, following), weight * share, state.behind(p, q, following)))
    return done


def upper_bound(case: Case) -> float | None:
    """The most that any lossless rule can accept of a deterministic tree: the sum over its nodes of the target's
    probability of the path to them. None for other trees."""
    trees = case.trees
    if len(trees) > 1 or trees[0][1].laws is not None:
        return None
    paths = paths_of(trees[0][1])[1:]
    return math.fsum(
        math.prod(float(case.target(path[:place])[path[place]]) for place in range(len(path))) for path in paths
    )
