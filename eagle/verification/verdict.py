"""What a verification rule is, and what it returns.

A rule looks at a drafted tree and the target's probabilities and lays a *plan*: a walk through the tree that tosses
coins of known probabilities and ends at an accepted node, and for each node the weights that the next token is drawn
from. One plan serves for verifying, where the coins are tossed, and for exact results, where every fall of them is
followed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.errors import InputError
from eagle.tree.draft_tree import DraftTree
from eagle.tree.drawing import draw, uniforms

Toss = Callable[[float], bool]
"""``toss(probability) -> bool``: true with that probability."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one round.

    Attributes:
        path: ids of the accepted nodes from the root (always accepted, first) downwards.
        next_token: () int64 on the target's device, the token after the path, drawn by the target.
    """

    path: tuple[int, ...]
    next_token: Tensor

    @property
    def accept_length(self) -> int:
        """Accepted draft tokens; neither the root nor the next token counts."""
        return len(self.path) - 1


class Plan(ABC):
    """What a rule does with one tree of N nodes, given (N, V) target probabilities.

    Args:
        tree: the drafted tree.
        target_probs: probabilities of the token after each node.
    """

    def __init__(self, tree: DraftTree, target_probs: Tensor) -> None:
        self.tree, self.target_probs = tree, target_probs
        self.children = tree.children

    @abstractmethod
    def walk(self, toss: Toss) -> int:
        """Walk through the tree; returns the id of the last accepted node. Tosses at most 2 N coins.

        Raises:
            InputError: a visited row of the target's probabilities holds NaN or infinity.
        """

    @abstractmethod
    def remaining(self, node: int) -> Tensor:
        """(V,) weights of positive sum that the next token is drawn from where the walk ended at ``node``."""


@dataclass(frozen=True)
class Rule:
    """A verification rule.

    Attributes:
        name: in the registry.
        plan: lays the plan for a tree; touches no model.
        lossless: whether what it emits has the target's law, which ``eagle.verification.exact`` shows.
        chains_only: whether it refuses a tree that branches.
        follows_every_prefix: whether its rounds go on behind tokens that were not drafted, see ``naive_hsd``.
    """

    name: str
    plan: Callable[[DraftTree, Tensor], Plan]
    lossless: bool
    chains_only: bool = False
    follows_every_prefix: bool = False

    def verify(self, tree: DraftTree, target_probs: Tensor, generator: torch.Generator | None = None) -> Verdict:
        """Decide what of a tree is accepted and which token follows.

        Args:
            tree: N nodes.
            target_probs: (N, V) probabilities of the token after each node.
            generator: source of the 2 N + 1 uniform draws a round takes, used or not.

        Raises:
            InputError: a tree that the rule is not for, or a visited row that holds NaN or infinity.
        """
        plan = self.plan(tree, target_probs)
        draws = iter(uniforms(2 * len(tree) + 1, generator).tolist())
        node = plan.walk(lambda probability: next(draws) < probability)
        return Verdict(tree.path_to(node), draw(plan.remaining(node), next(draws)))

    def expected_length(self, tree: DraftTree, target_probs: Tensor) -> float:
        """The exact expected accepted length of this tree; no number is drawn. Arguments and errors as ``verify``."""
        ends = endings(self.plan(tree, target_probs))
        return math.fsum(p * int(tree.depths[node]) for node, p in ends)


def endings(plan: Plan) -> list[tuple[int, float]]:
    """Every way in which a plan's coins can fall: the node where the walk ends, and the probability."""
    found = []
    to_follow: list[tuple[bool, ...]] = [()]
    while to_follow:
        script = to_follow.pop()
        tossed: list[tuple[bool, float]] = []

        def toss(
            probability: float, script: tuple[bool, ...] = script, tossed: list[tuple[bool, float]] = tossed
        ) -> bool:
            outcome = script[len(tossed)] if len(tossed) < len(script) else probability > 0
            tossed.append((outcome, probability))
            return outcome

        node = plan.walk(toss)
        found.append((node, math.prod(p if outcome else 1 - p for outcome, p in tossed)))
        # Every coin that fell on its first side for the first time here may fall on the other.
        to_follow += [
            (*(fell for fell, _ in tossed[:place]), False)
            for place in range(len(script), len(tossed))
            if tossed[place][0] and tossed[place][1] < 1
        ]
    return found


def refuse_not_finite(node: int, probe: float) -> None:
    """Raise if a row of target probabilities is no law.

    Args:
        node: whose row.
        probe: any entry of the row: NaN or +inf anywhere in the logits makes the whole softmax NaN.

    Raises:
        InputError: the probe is not finite.
    """
    if not math.isfinite(probe):
        raise InputError(
            f"the target's logits at tree node {node} contain NaN or infinity; "
            "check the model's weights, or load it in a wider dtype (dtype=float32)"
        )
