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
from eagle.tree.drawing import draw_at
from eagle.tree.paths import draw_paths
from eagle.tree.retrieval import NO_COLUMN, Picks, Retrieval, Retrieved
from eagle.tree.selection import Candidates, Family, gathered, select
from eagle.tree.shape import KEY_ROUNDING, Sampling, TreeShape, reaches

Expand = Callable[[Tensor, Tensor], Tensor]
"""``expand(tokens, parents) -> logits``: run the drafter's model on one level.

tokens: (k,) target ids of the frontier; parents: (k,) index of each one's parent in the frontier before it (all 0 for
the first level, whose parent is the root). Returns (k, draft vocabulary) logits of what follows each of them.
"""

Sample = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, list[Tensor], Tensor]]
"""``sample(pool, picked, missing, parent_keys)``: see ``sampled``."""

# How far above 1 the mass of a law may be, in float32 and for the largest vocabularies, whatever the law.
MASS_ROUNDING = 1e-3


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

    Level by level the ``top_k`` candidates of largest key are expanded, if these are at least ``least_expanded``; of
    all candidates the ``total_token - 1`` that are decided on first stay, of those behind the ``fewest`` first only the
    ones with a key of at least ``least``.
    First come the largest keys, ties going to the smaller depth, then to the elder; but in front of them, level by
    level, the first ``early_nodes`` with a key of at least ``early``, which all stay.

    Joint verification is lossless only if nodes are decided on one by one, each before its token is drawn, and siblings
    are verified in the order in which something was first drawn in their subtrees (docs/hsd.md). Hence a key is fixed
    before its node's token is drawn and is at most the parent's.

    One transfer to the host, at the end; with ``retrieval`` more a level, for the paths that it is asked about and for
    ``least_expanded``. Without, devices other than a CPU run the model on what is not worth it too, for nothing.

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
        sample = partial(sampled, parts=parts_of_mass(shape.sampling, root_logits), choose=choose)
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
    """All that may become nodes of a tree, see ``grow``; without ``retrieval`` nobody waits for the device, unless it
    is the host.

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
    retrieved = None if retrieval is None else Retrieved(retrieval, root_logits.device)
    children = partial(_family, shape=shape, support=support, law=law, sample=sample, retrieved=retrieved)
    families = [children(root_logits[None], root_logits.new_zeros(1, dtype=_wide(root_logits)))]
    frontiers: list[Tensor] = []
    for _ in range(levels - 1):
        last = families[-1]
        keys, ranked = last.keys.reshape(-1).sort(descending=True, stable=True)
        above = keys[: shape.top_k]
        if shape.least_expanded is not None:
            waits = retrieved is not None or above.device.type == "cpu"
            above = _worth_expanding(above, shape.least_expanded, waits)
            if not len(above):
                break
        frontier = ranked[: len(above)]
        tokens, parents = last.tokens.reshape(-1)[frontier], frontier // last.tokens.shape[1]
        logits = expand(tokens, parents)
        if retrieved is not None:
            retrieved.descend(tokens.tolist(), parents.tolist())
        families.append(children(logits, above))
        frontiers.append(frontier)
    return gathered(families, frontiers)


def _worth_expanding(keys: Tensor, least: float, waits: bool) -> Tensor:
    """The keys, largest first, of the nodes that are expanded. Where nobody waits for the device all are, but with keys
    of -inf, those of the children too, where they are not worth it: the tree is the same."""
    if waits:
        return keys[: sum(reaches(key, least) for key in keys.tolist())]
    return keys.masked_fill(keys < math.log(least) - KEY_ROUNDING, -torch.inf)


def _picks(q: Tensor, parent_keys: Tensor, shape: TreeShape) -> tuple[Tensor, Tensor, Tensor | None]:
    """The columns and keys of the children of k nodes that the model proposes, most likely first, and which of them do
    not exist: (k, D) probabilities of what follows the nodes, (k,) their keys."""
    top, columns = q.topk(min(shape.top_k, q.shape[-1]), dim=-1)
    keys = parent_keys[:, None] + top.log_()
    if shape.sampling is None:
        return columns, keys, None
    # Keys are never above 0, so no threshold of 1 or less is asked of a child that does not exist.
    missing = keys < _logarithm(shape.sampling.threshold)
    return columns, keys.masked_fill_(missing, -torch.inf), missing


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
    q = logits.softmax(-1, dtype=_wide(logits))
    columns, keys, missing = _picks(q, parent_keys, shape)
    tokens: Tensor | None = None
    picked = columns
    if retrieved is not None:
        picks = retrieved.beside(Picks(support[columns], columns, keys), parent_keys, q)
        tokens, columns, keys = picks.tokens, picks.columns, picks.keys
        # A token without a column cannot be drawn anyway.
        missing, picked = (keys == -torch.inf) | (columns == NO_COLUMN), columns.clamp(min=0)
    if sample is None or missing is None:
        return Family(support[columns] if tokens is None else tokens, columns, keys)
    pool = q if law is None else law(logits)
    # A token that is picked is not drawn.
    pool, drawn, drawn_keys = sample(pool, picked, missing, parent_keys)
    columns, keys = torch.cat([columns, *drawn], dim=1), torch.cat([keys, drawn_keys], dim=1)
    tokens = support[columns] if tokens is None else torch.cat([tokens, *(support[each] for each in drawn)], dim=1)
    return Family(tokens, columns, keys, pool, len(drawn))


def parts_of_mass(sampling: Sampling, like: Tensor) -> Tensor:
    """What share of the mass that is left beside a node's picks the key of each of its samples stands for.

    Args:
        sampling: how samples are ranked: each later one half as high.
        like: (D,) logits of the drafter, for device and dtype.

    Returns:
        (samples,), the first one ``rho``, less what rounding may add to a mass: no key may be above the parent's.
    """
    first = min(sampling.rho, 1.0 - MASS_ROUNDING)
    return torch.tensor([first / 2**j for j in range(sampling.samples)], dtype=_wide(like), device=like.device)


def _wide(logits: Tensor) -> torch.dtype:
    """In what the probabilities and keys behind logits are reckoned."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def sampled(
    pool: Tensor, picked: Tensor, missing: Tensor, parent_keys: Tensor, parts: Tensor, choose: Choose
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Draw children beside picked ones.

    Args:
        pool: (k, D) probabilities of what follows each parent, which may be written to.
        picked: (k, w) columns that are picked and not drawn.
        missing: (k, w) bool, of these those that do not exist.
        parent_keys: (k,).
        parts: (samples,) see ``parts_of_mass``.
        choose: draws.

    Returns:
        The pool without what is picked, (k, 1) columns for each sample, and (k, samples) keys, -inf where nothing could
        be drawn.
    """
    pool = pool.scatter_reduce_(1, picked, missing.to(pool.dtype), "prod")
    columns, mass = choose(pool)
    # Fixed by what is left beside the picks, whatever is drawn of it.
    keys = torch.mul(mass, parts, out=parent_keys.new_empty(len(pool), len(parts)))
    keys.log_().add_(parent_keys[:, None])
    weights, drawn = pool, [columns]
    for j in range(1, len(parts)):
        weights = weights.scatter(1, drawn[-1], 0.0)
        columns, mass = choose(weights)
        drawn.append(columns)
        # Where no weight is left there is nothing to draw.
        keys[:, j : j + 1].masked_fill_(mass <= 0, -torch.inf)
    return pool, drawn, keys


def sampled_by(
    pool: Tensor, picked: Tensor, missing: Tensor, parent_keys: Tensor, parts: Tensor, taken: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """``sampled`` by inversion, given what is drawn from.

    Args:
        pool: as of ``sampled``, and so are the next four.
        picked: see there.
        missing: see there.
        parent_keys: see there.
        parts: see there.
        taken: (samples, k), of what is drawn from, see ``drawing.shares_of``.
    """
    rows = iter(taken[:, :, None].unbind())
    return sampled(pool, picked, missing, parent_keys, parts, lambda weights: draw_at(weights, next(rows)))


def needed(chance: Chance | None) -> Chance:
    """What samples are drawn with, which a shape that has some cannot do without."""
    if chance is None:
        raise ValueError("a shape with samples needs something to draw them with")
    return chance
