"""The draft tree, and growing it: EAGLE-3's dynamic tree, with or without sampled children.

Source: EAGLE-2 (Li et al. 2024, section 4: expansion and re-ranking by the draft's own confidence), which EAGLE-3
(Li et al. 2025) keeps. Sampled children beside the most likely ones are this package's, see docs/hsd.md. Nothing here
knows a model: growth sees logits, asks for more, and draws with what it is given.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from eagle.tree.chance import Chance, Choose
from eagle.tree.draft_tree import DraftTree
from eagle.tree.drawing import draw_rows
from eagle.tree.paths import draw_paths
from eagle.tree.retrieval import NO_COLUMN, Picks, Retrieval, Retrieved
from eagle.tree.selection import Candidates, Family, ranked_candidates, select
from eagle.tree.shape import TreeShape

Expand = Callable[[Tensor, Tensor], Tensor]
"""``expand(tokens, parents) -> logits``: run the drafter's model on one level.

tokens: (k,) target ids of the frontier; parents: (k,) index of each one's parent in the frontier before it (all 0 for
the first level, whose parent is the root). Returns (k, draft vocabulary) logits of what follows each of them.
"""

Sample = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""``sample(pool, picked, missing, parent_keys)``: see ``sampled``."""

LOG_2 = math.log(2)


def grow(
    root: int,
    root_logits: Tensor,
    expand: Expand,
    support: Tensor,
    shape: TreeShape,
    levels: int,
    chance: Chance | None = None,
    retrieval: Retrieval | None = None,
) -> DraftTree:
    """Grow a tree below ``root``.

    Level by level the ``top_k`` candidates of largest key are expanded; of all candidates the ``total_token - 1`` that
    are decided on first stay, of those behind the ``fewest`` first only the ones with a key of at least ``least``.
    First come the largest keys, ties going to the smaller depth, then to the elder; but in front of them, level by
    level, the first ``early_nodes`` with a key of at least ``early``, which all stay.

    Joint verification is lossless only if nodes are decided on one by one, each before its token is drawn, and siblings
    are verified in the order in which something was first drawn in their subtrees (docs/hsd.md). Hence a key is fixed
    before its node's token is drawn and is at most the parent's.

    One transfer to the host, at the end; with ``retrieval`` one more a level, for the paths that it is asked about.

    Args:
        root: last committed token, a target id.
        root_logits: (draft vocabulary,) logits of what follows the root.
        expand: runs the head on a frontier, see ``Expand``.
        support: (draft vocabulary,) int64, the target id of each draft id.
        shape: bounds of the tree, for the temperature at hand (``TreeShape.at``).
        levels: levels to grow, at least 1 (see ``TreeShape.levels``).
        chance: what samples are drawn from, and how; needed where ``shape`` has samples.
        retrieval: picked children from elsewhere; for trees whose nodes may have some.

    Raises:
        InputError: logits with NaN.
    """
    if shape.paths is not None:
        return draw_paths(root, root_logits, expand, support, shape.paths, levels, needed(chance))
    sample = None
    if shape.sampling is not None and shape.sampling.samples:
        choose = needed(chance).choices(draws(shape, levels))
        sample = partial(sampled, rho=shape.sampling.rho, samples=shape.sampling.samples, choose=choose)
    law = None if chance is None else chance.law
    found = candidates(root_logits, expand, support, shape, levels, law, sample, retrieval)
    return select(root, found, support, shape, retrieval)


def draws(shape: TreeShape, levels: int) -> int:
    """How many samples are drawn in growing a tree of so many levels."""
    samples = 0 if shape.sampling is None else shape.sampling.samples
    return samples * (1 + (levels - 1) * shape.top_k)


def candidates(
    root_logits: Tensor,
    expand: Expand,
    support: Tensor,
    shape: TreeShape,
    levels: int,
    law: Callable[[Tensor], Tensor] | None,
    sample: Sample | None,
    retrieval: Retrieval | None = None,
) -> Candidates:
    """All that may become nodes of a tree, see ``grow``; without ``retrieval`` nobody waits for the device.

    Args:
        root_logits: as of ``grow``, and so are the others that are not named here.
        expand: see there.
        support: see there.
        shape: see there.
        levels: see there.
        law: what samples are drawn from, see ``Chance.law``.
        sample: draws them; needed where ``shape`` has some.
        retrieval: see there.
    """
    wide = torch.float64 if root_logits.dtype == torch.float64 else torch.float32
    retrieved = None if retrieval is None else Retrieved(retrieval, root_logits.device)
    children = partial(_family, shape=shape, support=support, law=law, sample=sample, retrieved=retrieved)
    families = [children(root_logits[None], root_logits.new_zeros(1, dtype=wide))]
    frontiers: list[Tensor] = []
    for _ in range(levels - 1):
        last = families[-1]
        keys, ranked = last.keys.reshape(-1).sort(descending=True, stable=True)
        frontier = ranked[: shape.top_k]
        tokens, parents = last.tokens.reshape(-1)[frontier], frontier // last.tokens.shape[1]
        logits = expand(tokens, parents)
        if retrieved is not None:
            retrieved.descend(tokens.tolist(), parents.tolist())
        families.append(children(logits, keys[: shape.top_k]))
        frontiers.append(frontier)
    return ranked_candidates(families, frontiers, shape, retrieval is not None)


def _picks(q: Tensor, parent_keys: Tensor, shape: TreeShape, support: Tensor) -> Picks:
    """The children of k nodes that the model proposes, most likely first: (k, D) probabilities of what follows them,
    (k,) their keys."""
    top, columns = q.topk(min(shape.top_k, q.shape[-1]), dim=-1)
    keys = parent_keys[:, None] + top.log_()
    if shape.sampling is not None:
        # Keys are never above 0, so no threshold of 1 or less is asked of a child that does not exist.
        keys = keys.masked_fill_(keys < _logarithm(shape.sampling.threshold), -torch.inf)
    return Picks(support[columns], columns, keys)


def _logarithm(bound: float | None) -> float:
    """Of the smallest key; nothing has as large a one as None asks for."""
    return math.inf if bound is None else math.log(max(bound, sys.float_info.min))


def _family(
    logits: Tensor,
    parent_keys: Tensor,
    shape: TreeShape,
    support: Tensor,
    law: Callable[[Tensor], Tensor] | None,
    sample: Sample | None,
    retrieved: Retrieved | None,
) -> Family:
    """Pick and draw the children of a frontier: (k, D) logits of what follows it, (k,) its keys."""
    q = logits.softmax(-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    picks = _picks(q, parent_keys, shape, support)
    if retrieved is not None:
        picks = retrieved.beside(picks, parent_keys, q)
    if sample is None:
        return Family(picks.tokens, picks.columns, picks.keys)
    pool = q if law is None else law(logits)
    # A token that is picked is not drawn.
    missing = (picks.keys == -torch.inf) | (picks.columns == NO_COLUMN)
    pool, columns, keys = sample(pool, picks.columns.clamp(min=0), missing, parent_keys)
    return Family(
        torch.cat([picks.tokens, support[columns]], dim=1),
        torch.cat([picks.columns, columns], dim=1),
        torch.cat([picks.keys, keys], dim=1),
        pool,
        columns.shape[1],
    )


def sampled(
    pool: Tensor,
    picked: Tensor,
    missing: Tensor,
    parent_keys: Tensor,
    rho: float | Tensor,
    samples: int,
    choose: Choose,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw children beside picked ones.

    Args:
        pool: (k, D) probabilities of what follows each parent, which may be written to.
        picked: (k, w) columns that are picked and not drawn.
        missing: (k, w) bool, of these those that do not exist.
        parent_keys: (k,).
        rho: see ``Sampling``.
        samples: of each parent.
        choose: draws.

    Returns:
        The pool without what is picked, (k, samples) columns, and (k, samples) keys, -inf where nothing could be drawn.
    """
    pool = pool.scatter_reduce_(1, picked, missing.to(pool.dtype), "prod")
    mass = pool.sum(-1, keepdim=True)
    first = parent_keys[:, None] + (rho * mass.clamp(max=1.0)).log().to(parent_keys.dtype)
    weights, drawn, keys = pool, [], []
    for j in range(samples):
        column = choose(weights)[:, None]
        drawn.append(column)
        # Where no weight is left there is nothing to draw; a first sample without any has the key -inf already.
        keys.append(first if j == 0 else (first - j * LOG_2).masked_fill(weights.gather(1, column) <= 0, -torch.inf))
        if j + 1 < samples:
            weights = weights.scatter(1, column, 0.0)
    return pool, torch.cat(drawn, dim=1), torch.cat(keys, dim=1)


def sampled_by(
    pool: Tensor, picked: Tensor, missing: Tensor, parent_keys: Tensor, rho: Tensor, points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``sampled``, all of it in tensors.

    Args:
        pool: as there, and so are the next three.
        picked: see there.
        missing: see there.
        parent_keys: see there.
        rho: ().
        points: (samples, k) draws from [0, 1).
    """
    rows = iter(points.unbind())
    return sampled(pool, picked, missing, parent_keys, rho, len(points), lambda weights: draw_rows(weights, next(rows)))


def needed(chance: Chance | None) -> Chance:
    """What samples are drawn with, which a shape that has some cannot do without."""
    if chance is None:
        raise ValueError("a shape with samples needs something to draw them with")
    return chance
