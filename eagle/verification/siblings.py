"""The mathematics that all rules share: testing the children of a node in their order.

Notation of docs/hsd.md. At a node v that is to be accepted through with probability r, let m = r * p be the target
law after v times r, a measure over the vocabulary. For each child c with law q, in order:

    g = |m| + 1 - r                        the probability of getting as far as c
    c is given the weight min(1, m(c) / (g * q(c)))
    m <- max(m - g * q, 0)                 what its rejection leaves

and in the end v is accepted with probability |m| / (|m| + 1 - r), the next token drawn in proportion to m. (m and g
are the p and r of the recursion in the papers, before normalisation.) A child without a law of its own, picked rather
than drawn, has all its law on its token: its rejection sets m to 0 there and leaves the rest alone.

These are a few numbers a node, and are reckoned on the host. Only |m| behind a law takes the whole draft vocabulary
and comes from the device; families that wait for theirs are given them together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from eagle.tree.draft_tree import ONE_HOT
from eagle.verification.families import Behind, Families, Family

# The smallest divisor: where nothing gets this far, nothing is left either.
TINY = 1e-300


@dataclass(frozen=True)
class Weighed:
    """What testing children comes to.

    Attributes:
        weights: of each tested child, given that its elder siblings were rejected.
        stop: for each of their parents the probability that it is accepted, given that all its children were rejected.
        reached: for each of them the g of its drawn children, in order.
    """

    weights: dict[int, float]
    stop: dict[int, float]
    reached: dict[int, list[float]]


Begin = Callable[[int, float], None]
Testing = Generator[Behind, float, None]
"""The test of a family in progress: it asks for masses, and is told them."""


def weigh(families: Families, r: Mapping[int, float], joint: bool = False) -> Weighed:
    """Test the children of nodes; the device is waited for as often as laws lie before each other.

    Args:
        families: of the tree.
        r: for each node whose children are tested the probability with which it is to be accepted through.
        joint: whether the children of tested children are tested too, with their parents' weights as r.
    """
    weighed = Weighed({}, {}, {})
    new: list[Testing] = []
    waiting: list[tuple[Testing, Behind]] = []

    def begin(parent: int, r: float) -> None:
        if parent in families.of:
            new.append(_testing(families.of[parent], r, weighed, begin if joint else _leave))

    for parent, through in r.items():
        begin(parent, through)
    while new or waiting:
        while new:
            testing = new.pop()
            with suppress(StopIteration):
                waiting.append((testing, next(testing)))
        masses = families.masses([question for _, question in waiting])
        asked, waiting = waiting, []
        for (testing, _), mass in zip(asked, masses, strict=True):
            with suppress(StopIteration):
                waiting.append((testing, testing.send(mass)))
    return weighed


def _leave(child: int, weight: float) -> None:
    """What is begun with a tested child whose own children are not."""


def _testing(family: Family, r: float, weighed: Weighed, begin: Begin) -> Testing:
    total, short = r, 1.0 - r
    m = [r * p for p in family.p]
    # What rejected picks had of m is still in the masses.
    picked: list[int] = []
    laws, reached = iter(family.q), weighed.reached.setdefault(family.parent, [])
    for place, child in enumerate(family.children):
        q = None if family.laws[place] == ONE_HOT else next(laws)
        g = total + short
        weight = weighed.weights[child] = min(m[place] / max(g if q is None else g * q[place], TINY), 1.0)
        begin(child, weight)
        if q is None:
            picked.append(place)
            total = max(total - m[place], 0.0)
            continue
        reached.append(g)
        m = [max(left - g * claimed, 0.0) for left, claimed in zip(m, q, strict=True)]
        if total > 0.0:
            mass = yield Behind(family, r, tuple(reached))
            total = max(mass - sum(m[elder] for elder in picked), 0.0)
    at_all = total + short
    # 0 / 0, where everything was rejected that was sure to be accepted, is rounding: the node is accepted.
    weighed.stop[family.parent] = total / at_all if at_all > 0.0 else 1.0
