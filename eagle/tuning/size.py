"""Choosing the size of the tree for this machine (``total_token=-1``).

A larger tree is accepted for longer and takes longer to score. Both are measured here, on this pair and this device:
the time of a target forward over N nodes, and the exact expected accepted length of the tree of N nodes.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eagle.clock import Clock
from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.speculation import Speculation
from eagle.drafters.drafter import Drafter
from eagle.target.target import Target
from eagle.target.text import Text
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.tuning.acceptance import expected_length
from eagle.verification import Plan, Rule

LARGEST = 60
SIZES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, LARGEST)
ROUNDS = 24
REPEATS = 5


def tuned_shape(target: Target, drafter: Drafter, shape: TreeShape) -> TreeShape:
    """``shape`` with the ``total_token`` of most expected tokens per second on this machine.

    Takes a few seconds on a CPU: decodes some rounds at temperature 1 with the largest tree, then times each size.

    Args:
        target: the model.
        drafter: drafts the trees.
        shape: what to keep; its ``total_token`` is the largest size tried. With samples it is verified jointly, else
            token-wise. What it says of several paths does not matter: their size is their number and length. What it
            says of keys is for trees of the size that is found.
    """
    kept: dict[str, Any] = {"paths": shape.paths, "least": shape.least, "least_expanded": shape.least_expanded}
    shape = replace(shape, paths=None, least=None, least_expanded=None)
    rule = Method.named(hsd=shape.sampling is not None).rule
    accepted: list[list[float]] = []

    def observe(tree: DraftTree, target_probs: Tensor) -> Plan:
        accepted.append([expected_length(rule, tree, target_probs, size) for size in SIZES if size <= len(tree)])
        return rule.plan(tree, target_probs)

    bos = target.config.bos_token_id
    prompt = torch.tensor([[bos if isinstance(bos, int) else 0]])
    limit = min(1 + ROUNDS * (shape.depth + 2), target.context_length or 2048)
    decoding = Decoding(
        target,
        Speculation(drafter, shape, Rule(rule.name, observe, rule.lossless)),
        Text(prompt, Warper(temperature=1.0), limit, generator=torch.Generator().manual_seed(0)),
    )
    while not decoding.finished and len(decoding.info["tree_time"]) < ROUNDS:
        decoding.step()
    tried = max(map(len, accepted))
    curves = [curve for curve in accepted if tried and len(curve) == tried]
    if not curves:
        return replace(shape, **kept)
    a_level = statistics.median(decoding.info["update_time"]) / (shape.depth + 1)
    speed = {
        size: (1.0 + statistics.fmean(lengths))
        / (_forward_time(decoding, size) + a_level * replace(shape, total_token=size).levels(room=shape.depth + 1))
        for size, lengths in zip(SIZES[:tried], zip(*curves, strict=True), strict=True)
    }
    return replace(shape, total_token=max(speed, key=speed.__getitem__), **kept)


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
