"""Joint verification's numbers reckoned on the device, all families of a level at once: the recursion of ``siblings``
in tensors.

On the host it waits for the device once for every law on a path. A GPU is faster where it need not be waited for, and
with everything in tensors of fixed sizes the whole recursion is recorded and launched as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident

import torch
from torch import Tensor
from torch.nn import functional

from eagle.devices import wide_dtype
from eagle.launches import Recorded, compiled
from eagle.tree.draft_tree import ONE_HOT, DraftTree
from eagle.verification.families import Families
from eagle.verification.siblings import TINY, Weighed

# What sizes are filled up to multiples of: nodes, children, and levels.
NODES, CHILDREN, LEVELS = 16, 16, 4
# Recordings that are kept.
MOST = 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of a recursion.

    Attributes:
        nodes: N.
        children: W, of a node at most.
        samples: S, drawn children of a node at most.
        levels: of nodes with children.
        vocabulary: D, of the laws.
    """

    nodes: int
    children: int
    samples: int
    levels: int
    vocabulary: int


@dataclass(frozen=True)
class Sheet:
    """The families of a tree in tensors, of N nodes with W children at most, S of them drawn; in the last three those
    that have laws come first.

    Attributes:
        numbers: (N * W + N * S * W,) what the target says of each node's children's tokens, 0 behind its last child,
            and what each of their laws says of them.
        facts: (4N + N * S,) int64: of each node its parent, its place among its siblings and its depth; the places
            of each node's drawn children in order, W where there is none; the node of each family with laws, N where
            there is none.
        inside: (N, D) of these the target's probabilities of the draft vocabulary.
        outside: (N,) and of all other tokens together.
        rows: (N, S, D) their laws.
    """

    numbers: Tensor
    facts: Tensor
    inside: Tensor
    outside: Tensor
    rows: Tensor


def sizes_of(tree: DraftTree, families: Families, samples: int) -> Sizes:
    """Sizes that are large enough for a tree with ``samples`` drawn children of a node at most."""
    most = max(len(family.children) for family in families.of.values())
    return Sizes(
        _filled(len(tree), NODES),
        _filled(most, CHILDREN),
        samples,
        _filled(int(tree.depths.max()), LEVELS),
        families.inside.shape[1],
    )


def _filled(count: int, step: int) -> int:
    return -(-count // step) * step


def weigh_together(tree: DraftTree, families: Families) -> Weighed:
    """What ``siblings.weigh`` comes to with ``joint``, with one transfer to the host; for trees with laws.

    Args:
        tree: the drafted tree.
        families: its families.
    """
    samples = max(len(families.of[parent].drawn_from) for parent in families.with_laws)
    sizes = sizes_of(tree, families, samples)
    sheet, run = _recording(sizes, families.inside.dtype, families.inside.device, get_ident())
    numbers, facts = _numbers_and_facts(tree, families, sizes)
    sheet.numbers.copy_(numbers, non_blocking=True)
    sheet.facts.copy_(facts, non_blocking=True)
    count = len(families.with_laws)
    sheet.inside[:count] = families.inside
    sheet.outside[:count] = families.outside
    sheet.rows[:count] = families.law_rows(samples)
    table = run().tolist()
    weights = {node: table[node][0] for node in range(1, len(tree))}
    stop = {parent: table[parent][1] for parent in families.of}
    reached = {parent: table[parent][2 : 2 + len(family.drawn_from)] for parent, family in families.of.items()}
    return Weighed(weights, stop, reached)


@lru_cache(maxsize=MOST)
def _recording(sizes: Sizes, dtype: torch.dtype, device: torch.device, thread: int) -> tuple[Sheet, Recorded[Tensor]]:
    """The recursion for some sizes, and what it reads; of one thread, as others may verify at the same time."""
    wide, nodes, width, samples = wide_dtype(device), sizes.nodes, sizes.children, sizes.samples
    facts = torch.zeros(nodes * (4 + samples), dtype=torch.int64, device=device)
    laws = torch.zeros(nodes, 1 + samples, sizes.vocabulary, dtype=dtype, device=device)
    sheet = Sheet(
        torch.zeros(nodes * width * (1 + samples), dtype=wide, device=device),
        facts,
        laws[:, 0],
        torch.zeros(nodes, dtype=wide, device=device),
        laws[:, 1:],
    )
    tested: Testing = compiled(_tested) if device.type == "cuda" else _tested
    return sheet, Recorded(lambda: recursion(sheet, sizes, tested), device)


def _numbers_and_facts(tree: DraftTree, families: Families, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """What a sheet says of a tree, on the host."""
    nodes, width, samples = sizes.nodes, sizes.children, sizes.samples
    p, q = [0.0] * (nodes * width), [0.0] * (nodes * samples * width)
    place, laws = [0] * nodes, [width] * (nodes * samples)
    for parent, family in families.of.items():
        p[parent * width : parent * width + len(family.p)] = family.p
        drawn = [nth for nth, law in enumerate(family.laws) if law != ONE_HOT]
        laws[parent * samples : parent * samples + len(drawn)] = drawn
        for j, row in enumerate(family.q):
            start = (parent * samples + j) * width
            q[start : start + len(row)] = row
        for nth, child in enumerate(family.children):
            place[child] = nth
    filling = [0] * (nodes - len(tree))
    with_laws = [*families.with_laws, *[nodes] * (nodes - len(families.with_laws))]
    facts = [*tree.parents.tolist(), *filling, *place, *tree.depths.tolist(), *filling, *laws, *with_laws]
    return torch.tensor([*p, *q], dtype=torch.float64), torch.tensor(facts)


Testing = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""``_tested``, compiled or not."""


def recursion(sheet: Sheet, sizes: Sizes, tested: Testing) -> Tensor:
    """Weigh all children and stops of a tree; see ``siblings`` for the mathematics. Nobody waits for the device.

    Args:
        sheet: of the tree, on the device.
        sizes: of the sheet.
        tested: tests the children of all nodes.

    Returns:
        (N, 2 + S): of each node the weight, the root's being 1; the probability that it is accepted, given that all its
        children were rejected, if it has any; and the g of each drawn child.
    """
    nodes, width, samples = sizes.nodes, sizes.children, sizes.samples
    p, q = sheet.numbers.split([nodes * width, nodes * samples * width])
    p, q = p.view(nodes, width), q.view(nodes, samples, width)
    parent, place, depth, laws, with_laws = sheet.facts.split([nodes] * 3 + [nodes * samples, nodes])
    # (N, S + 1): the places of drawn children, and an end behind all of them.
    ends = functional.pad(laws.view(nodes, samples), (0, 1), value=width)
    r = functional.pad(p.new_ones(1), (0, nodes - 1))
    for level in range(sizes.levels):
        weights, stop, reached = tested(r, p, q, ends, with_laws, sheet.inside, sheet.outside, sheet.rows)
        r = torch.where(depth == level + 1, weights.view(-1)[parent * width + place], r)
    return torch.cat([r[:, None], stop[:, None], reached], dim=1)


def _tested(
    r: Tensor,
    p: Tensor,
    q: Tensor,
    ends: Tensor,
    with_laws: Tensor,
    inside: Tensor,
    outside: Tensor,
    rows: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Test the children of all nodes, each accepted through with (N,) probability r: (N, W) weights, (N,) what nodes
    are accepted with in the end, (N, S) the g of drawn children."""
    places = torch.arange(p.shape[1], device=p.device)
    short, m, total = 1.0 - r, r[:, None] * p, r
    weights, reached, narrow = torch.zeros_like(p), [], inside.dtype
    # Of families that only fill up r is 0.
    through = functional.pad(r, (0, 1))[with_laws]
    left = through.to(narrow)[:, None] * inside
    behind = torch.full_like(with_laws[:1], -1)
    picked = torch.zeros_like(p, dtype=torch.bool)
    for j in range(ends.shape[1]):
        end = ends[:, j, None]
        # Picks between two drawn children take their m from the total, one after the other.
        picks = (places > behind) & (places < end)
        taken = (m * picks).cumsum(-1)
        g = (total[:, None] - taken + m).clamp_(min=0.0) + short[:, None]
        weights = torch.where(picks, (m / g.clamp_(min=TINY)).clamp_(max=1.0), weights)
        total = (total - taken[:, -1]).clamp_(min=0.0)
        picked = picked | picks
        if j + 1 == ends.shape[1]:
            break
        exists = ends[:, j] < len(places)
        reached.append(torch.where(exists, total + short, 0.0))
        claimed = reached[-1][:, None] * q[:, j]
        weights = torch.where(places == end, (m / claimed.clamp(min=TINY)).clamp_(max=1.0), weights)
        m = (m - claimed).clamp_(min=0.0)
        g_of_laws = functional.pad(reached[-1], (0, 1))[with_laws]
        left = left.addcmul(rows[:, j], g_of_laws.to(narrow)[:, None], value=-1.0)
        mass = left.clamp(min=0.0).sum(-1).to(r.dtype) + through * outside
        masses = torch.zeros_like(functional.pad(r, (0, 1))).index_put_((with_laws,), mass)[:-1]
        # What rejected picks had of m is still in the masses.
        without_picks = (masses - (m * picked).sum(-1)).clamp_(min=0.0)
        total = torch.where(exists & (total > 0.0), without_picks, total)
        behind = end
    at_all = total + short
    return weights, torch.where(at_all > 0.0, total / at_all, 1.0), torch.stack(reached, dim=1)
