"""The draft tree, and growing it: EAGLE-3's dynamic tree, with or without sampled children.

Source: EAGLE-2 (Li et al. 2024, section 4: expansion and re-ranking by the draft's own confidence), which EAGLE-3
(Li et al. 2025) keeps. Sampled children beside the most likely ones are this package's, see docs/hsd.md. Nothing here
knows a model: growth sees logits, asks for more, and draws with what it is given.
"""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.devices import sent
from eagle.errors import InputError
from eagle.tree.chance import Chance, Choose
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws
from eagle.tree.paths import draw_paths
from eagle.tree.shape import Sampling, TreeShape

Expand = Callable[[Tensor, Tensor], Tensor]
"""``expand(tokens, parents) -> logits``: run the drafter's model on one level.

tokens: (k,) draft ids of the frontier; parents: (k,) index of each one's parent in the frontier before it (all 0 for
the first level, whose parent is the root). Returns (k, draft vocabulary) logits of what follows each of them.
"""


def grow(
    root: int,
    root_logits: Tensor,
    expand: Expand,
    support: Tensor,
    shape: TreeShape,
    levels: int,
    chance: Chance | None = None,
) -> DraftTree:
    """Grow a tree below ``root``.

    Level by level the ``top_k`` candidates of largest key are expanded; of all candidates the ``total_token - 1`` that
    are decided on first stay. Those are the ones of largest key, ties going to the smaller depth, then to the elder;
    but in front of them come, level by level, the first ``early_nodes`` with a key of at least ``early``.

    Joint verification is lossless only if nodes are decided on one by one, each before its token is drawn, and siblings
    are verified in the order in which something was first drawn in their subtrees (docs/hsd.md). Hence a key is fixed
    before its node's token is drawn and is at most the parent's.

    One transfer to the host, at the end.

    Args:
        root: last committed token, a target id.
        root_logits: (draft vocabulary,) logits of what follows the root.
        expand: runs the head on a frontier, see ``Expand``.
        support: (draft vocabulary,) int64, the target id of each draft id.
        shape: bounds of the tree, for the temperature at hand (``TreeShape.at``).
        levels: levels to grow, at least 1 (see ``TreeShape.levels``).
        chance: what samples are drawn from, and how; needed where ``shape`` has samples.

    Raises:
        InputError: logits with NaN.
    """
    if shape.paths is not None:
        return draw_paths(root, root_logits, expand, support, shape.paths, levels, needed(chance))
    wide = torch.float64 if root_logits.dtype == torch.float64 else torch.float32
    samples = 0 if shape.sampling is None else shape.sampling.samples
    choose = needed(chance).choices(samples * (1 + (levels - 1) * shape.top_k)) if samples else None
    law = None if chance is None else chance.law
    families = [_family(root_logits[None], root_logits.new_zeros(1, dtype=wide), shape, law, choose)]
    frontiers: list[Tensor] = []
    for _ in range(levels - 1):
        last = families[-1]
        keys, ranked = last.keys.reshape(-1).sort(descending=True, stable=True)
        frontier = ranked[: shape.top_k]
        logits = expand(last.tokens.reshape(-1)[frontier], frontier // last.tokens.shape[1])
        families.append(_family(logits, keys[: shape.top_k], shape, law, choose))
        frontiers.append(frontier)
    return _select(root, families, frontiers, support, shape)


@dataclass(frozen=True)
class _Family:
    """The children of k expanded nodes, w each: deterministic ones, best first, and behind them the samples in order.

    tokens: (k, w) draft ids; keys: (k, w), -inf for a child that does not exist; pool: (k, D) weights of the tokens
    that the first sample was drawn from; samples: how many of the w are samples.
    """

    tokens: Tensor
    keys: Tensor
    pool: Tensor | None = None
    samples: int = 0


def _family(
    logits: Tensor,
    parent_keys: Tensor,
    shape: TreeShape,
    law: Callable[[Tensor], Tensor] | None,
    choose: Choose | None,
) -> _Family:
    """Pick and draw the children of a frontier: (k, D) logits of what follows it, (k,) its keys."""
    q = logits.softmax(-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    top, tokens = q.topk(min(shape.top_k, logits.shape[-1]), dim=-1)
    keys = parent_keys[:, None] + top.log_()
    sampling = shape.sampling
    if sampling is None:
        return _Family(tokens, keys)
    # Keys are never above 0, so no threshold of 1 or less is asked of a child that does not exist.
    lowest = math.inf if sampling.threshold is None else math.log(max(sampling.threshold, sys.float_info.min))
    unpicked = keys < lowest
    keys = keys.masked_fill_(unpicked, -torch.inf)
    if choose is None:
        return _Family(tokens, keys)
    pool = q if law is None else law(logits)
    pool.scatter_(1, tokens, pool.gather(1, tokens).mul_(unpicked))
    mass = pool.sum(-1, keepdim=True)
    first = parent_keys[:, None] + (sampling.rho * mass.clamp_(max=1.0)).log_().to(parent_keys.dtype)
    weights, drawn, sample_keys = pool, [tokens], [keys]
    for j in range(sampling.samples):
        column = choose(weights)[:, None]
        drawn.append(column)
        # Where no weight is left there is nothing to draw; a first sample without any has the key -inf already.
        key = (first - j * math.log(2)).masked_fill_(weights.gather(1, column) <= 0, -torch.inf) if j else first
        sample_keys.append(key)
        if j + 1 < sampling.samples:
            weights = weights.scatter(1, column, 0.0)
    return _Family(torch.cat(drawn, dim=1), torch.cat(sample_keys, dim=1), pool, sampling.samples)


def needed(chance: Chance | None) -> Chance:
    """What samples are drawn with, which a shape that has some cannot do without."""
    if chance is None:
        raise ValueError("a shape with samples needs something to draw them with")
    return chance


def best(keys: Tensor, count: int) -> Tensor:
    """Ids of the ``count`` largest keys, best first, ties to the smaller id (``topk`` promises no order for ties)."""
    return torch.argsort(keys, descending=True, stable=True)[:count]


def _select(
    root: int, families: list[_Family], frontiers: list[Tensor], support: Tensor, shape: TreeShape
) -> DraftTree:
    """Keep the candidates of all levels that are decided on first: no key is above the parent's, and ties go to the
    elder, so parents come before their children, and what stays is decided by nodes before it."""
    keys = torch.cat([family.keys.reshape(-1) for family in families])
    tokens = torch.cat([family.tokens.reshape(-1) for family in families])
    kept = best(_ranks(keys, families, shape.sampling), shape.total_token - 1)
    kept_keys, columns = keys[kept], tokens[kept]
    # Of a candidate that does not exist the key is -inf; of NaN it is not what it is.
    state = (kept_keys > -torch.inf).long() - (kept_keys != kept_keys).long()
    facts = torch.cat([state, kept, columns, support[columns], *frontiers]).tolist()
    states, candidates, column_ids, targets = (facts[i * len(kept) : (i + 1) * len(kept)] for i in range(4))
    if -1 in states:
        raise InputError("the drafter's logits contain NaN; check its weights, or load the pair in a wider dtype")
    # Where fewer candidates exist than may stay, those that do not exist come last.
    existing = sum(states)
    expanded = [[0], *_split(facts[4 * len(kept) :], [len(frontier) for frontier in frontiers])]
    starts = list(itertools.accumulate((family.tokens.numel() for family in families), initial=0))
    node_of: dict[int, int] = {}
    parents, depths, row_of = [0], [0], [ONE_HOT]
    drawn: list[_Drawn] = []
    for node, candidate in enumerate(candidates[:existing], start=1):
        depth = bisect.bisect_right(starts, candidate)
        family = families[depth - 1]
        row, place = divmod(candidate - starts[depth - 1], family.tokens.shape[1])
        nth = place - (family.tokens.shape[1] - family.samples)
        node_of[candidate] = node
        parents.append(0 if depth == 1 else node_of[starts[depth - 2] + expanded[depth - 1][row]])
        depths.append(depth)
        row_of.append(ONE_HOT if nth < 0 else len(drawn))
        if nth >= 0:
            drawn.append(_Drawn(family, row, nth))
    return DraftTree(
        tokens=torch.tensor([root, *targets[:existing]]),
        parents=torch.tensor(parents),
        depths=torch.tensor(depths),
        keys=torch.cat([keys.new_zeros(1), kept_keys[:existing]]),
        laws=Laws(_law_rows(drawn), torch.tensor(row_of), torch.tensor([ONE_HOT, *column_ids[:existing]]), support)
        if drawn
        else None,
    )


def _split(values: list[int], sizes: list[int]) -> list[list[int]]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [values[start:end] for start, end in itertools.pairwise(ends)]


def _ranks(keys: Tensor, families: list[_Family], sampling: Sampling | None) -> Tensor:
    """What candidates are decided on by, the largest first: their keys, which are 0 at most, and above them the places
    of early ones."""
    if sampling is None or sampling.early is None:
        return keys
    levels = torch.cat([keys.new_full((family.keys.numel(),), -level) for level, family in enumerate(families)])
    by_key = best(keys, len(keys))
    levels = levels.masked_fill_(keys < math.log(max(sampling.early, sys.float_info.min)), -torch.inf)[by_key]
    first = best(levels, sampling.early_nodes)
    places = torch.arange(len(first), 0, -1, device=keys.device, dtype=keys.dtype)
    early = by_key[first]
    return keys.index_copy(0, early, torch.where(levels[first] > -torch.inf, places, keys[early]))


@dataclass(frozen=True)
class _Drawn:
    """A sampled node: the family it is in, the row of its parent there, and which of the samples it is."""

    family: _Family
    parent: int
    nth: int


def _law_rows(drawn: list[_Drawn]) -> Tensor:
    """(R, D) laws of samples."""
    pools = [node.family.pool for node in drawn if node.family.pool is not None]
    laws = torch.stack([pool[node.parent] for pool, node in zip(pools, drawn, strict=True)])
    for j in range(max(node.nth for node in drawn)):
        # What was drawn before a sample could not be drawn again.
        later = [(row, node.family, node.parent) for row, node in enumerate(drawn) if node.nth > j]
        rows = sent(torch.tensor([row for row, _, _ in later]), laws.device)
        gone = torch.stack([family.tokens[parent, j - family.samples] for _, family, parent in later])
        laws[rows, gone] = 0.0
    return laws.div_(laws.sum(-1, keepdim=True))
