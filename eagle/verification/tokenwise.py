"""Token-wise verification of a deterministic tree: recursive rejection sampling.

Source: Leviathan et al. 2023 (one drafted token), SpecInfer (Miao et al. 2023) and EAGLE (Li et al. 2024) for several
siblings. A child that the drafter picked deterministically has a one-hot law, so it is accepted with its probability
under what the target law has become after its elder siblings were rejected; a rejection removes its token from that
law. The output is distributed as the target's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eagle.model.sampling import draw, uniforms
from eagle.model.tree import DraftTree
from eagle.verification.verdict import Verdict, not_finite


def verify(tree: DraftTree, target_probs: Tensor, generator: torch.Generator | None = None) -> Verdict:
    """Walk down the tree, testing each node's children in order; draw the next token from what is left.

    Only the probabilities of drafted tokens and one residual row are ever widened to double precision; one transfer to
    the host.

    Args:
        tree: N nodes, children drafted deterministically (distinct tokens among siblings).
        target_probs: (N, V) probabilities of the token after each node.
        generator: source of the N uniform draws a round takes.

    Raises:
        InputError: a visited row holds NaN or infinity.
    """
    drafted, sane = drafted_probs(tree, target_probs)
    *tests, last = uniforms(len(tree), generator)
    children = tree.children()
    path = [0]
    while True:
        node = path[-1]
        if not sane[node]:
            raise not_finite(node)
        remaining, accepted = 1.0, None
        for child in children[node]:
            # u * remaining < p is the test u < p / remaining, without a division by a mass that may be 0.
            if tests[child - 1] * remaining < drafted[child]:
                accepted = child
                break
            remaining -= drafted[child]
        if accepted is None:
            rejected = tree.tokens[children[node]]
            return Verdict(tuple(path), draw(residual(target_probs[node], rejected), last))
        path.append(accepted)


def drafted_probs(tree: DraftTree, target_probs: Tensor) -> tuple[list[float], list[bool]]:
    """The target's probability of every node's token after its parent (any value for the root), and whether each
    node's row of the target law is a law at all. One transfer to the host.

    Args:
        tree: N nodes.
        target_probs: (N, V).
    """
    device = target_probs.device
    of_nodes = target_probs[tree.parents.to(device), tree.tokens.to(device)]
    # NaN anywhere in the logits makes the whole row of the softmax NaN, so one column tells.
    p, probe = torch.stack([of_nodes, target_probs[:, 0]]).tolist()
    return p, [not math.isnan(x) for x in probe]


def residual(probs: Tensor, rejected: Tensor) -> Tensor:
    """The target law after all one-hot children of a node were rejected: their tokens removed, not normalised.

    Args:
        probs: (V,) target probabilities after the node.
        rejected: (children,) int64, the rejected tokens.

    Returns:
        (V,) weights of positive sum. Where the children hold all the mass, their joint rejection was rounding (an event
        of probability about 1e-7), and the law itself is what remains to draw from.
    """
    weights = probs.index_fill(0, rejected.to(probs.device), 0.0)
    return torch.where(weights.sum() > 0, weights, probs)
