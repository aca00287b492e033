"""Choosing the size of the tree for this machine (``total_token=-1``).

A larger tree is accepted for longer and takes longer to score. Both are measured here, on this pair and this device:
the time of a target forward over N nodes, and the exact expected accepted length of the N best nodes, which for a
deterministic tree is the sum over its nodes of the target's probability of the path to them.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch
from torch import Tensor

from eagle.model.clock import Clock
from eagle.model.decoding import Decoding
from eagle.model.drafter import Drafter
from eagle.model.head import Eagle3Head
from eagle.model.sampling import Warper
from eagle.model.target import Target
from eagle.model.tree import DraftTree, TreeShape
from eagle.verification import RULES, Verdict

LARGEST = 60
SIZES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, LARGEST)
ROUNDS = 24
REPEATS = 5


def tuned_shape(target: Target, head: Eagle3Head, shape: TreeShape) -> TreeShape:
    """``shape`` with the ``total_token`` of most expected tokens per second on this machine.

    Takes a few seconds on a CPU: decodes some rounds at temperature 1 with the largest tree, then times each size.

    Args:
        target: the model.
        head: its draft head.
        shape: depth and top_k to keep; its ``total_token`` is the largest size tried.
    """
    accepted: list[Tensor] = []

    def observe(tree: DraftTree, target_probs: Tensor, generator: torch.Generator | None) -> Verdict:
        accepted.append(expected_by_size(tree, target_probs))
        return RULES["tokenwise"](tree, target_probs, generator)

    bos = target.config.bos_token_id
    prompt = torch.tensor([[bos if isinstance(bos, int) else 0]])
    limit = min(1 + ROUNDS * (shape.depth + 2), target.context_length or 2048)
    decoding = Decoding(
        target,
        Drafter(head, shape),
        prompt,
        Warper(temperature=1.0),
        limit,
        frozenset(),
        torch.Generator().manual_seed(0),
        rule=observe,
    )
    while not decoding.finished and len(decoding.info["tree_time"]) < ROUNDS:
        decoding.step()
    full = [curve for curve in accepted[1:] if len(curve) == shape.total_token]
    if not full:
        return shape
    curve = torch.stack(full).mean(0)
    levels = shape.depth + 1
    a_level = statistics.median(decoding.info["update_time"]) / levels
    speed = {
        size: (1.0 + float(curve[size - 1]))
        / (_forward_time(decoding, size) + a_level * replace(shape, total_token=size).levels(room=levels))
        for size in SIZES
        if size <= len(curve)
    }
    return replace(shape, total_token=max(speed, key=speed.__getitem__))


def expected_by_size(tree: DraftTree, target_probs: Tensor) -> Tensor:
    """Expected accepted length of the n best nodes of a deterministic tree, for n = 1 .. N.

    Args:
        tree: N nodes with one-hot laws.
        target_probs: (N, V) probabilities after each node.

    Returns:
        (N,) float64 on the host; entry n - 1 belongs to the tree of n nodes, the root included.
    """
    device = target_probs.device
    reach = target_probs[tree.parents.to(device), tree.tokens.to(device)].cpu().double()
    reach[0] = 0.0
    for node, parent in enumerate(tree.parents.tolist()):
        if parent:
            reach[node] *= reach[parent]
    order = torch.argsort(tree.scores, descending=True, stable=True).cpu()
    return reach[order].cumsum(0)


@torch.inference_mode()
def _forward_time(decoding: Decoding, size: int) -> float:
    """Median seconds of a target forward over ``size`` nodes behind what ``decoding`` has committed."""
    tree = decoding.tree.best(size)
    times = []
    for _ in range(REPEATS):
        clock = Clock(decoding.target.device)
        decoding.target.score(tree, decoding.cache)
        times.append(clock.lap())
        decoding.cache.keep(())
    return statistics.median(times)
