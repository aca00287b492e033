"""A tree of picked tokens, the likeliest paths first."""

from __future__ import annotations

import heapq
import itertools
import math

import torch

from eagle.tree.draft_tree import DraftTree
from eagle.tree.retrieval import Predict


def pick_tree(root: int, predict: Predict, total_token: int, levels: int, least: float | None) -> DraftTree:
    """The tree of the paths of largest probability, in that order; a node's key is the logarithm of its path's.

    Args:
        root: last committed token.
        predict: is asked about each node of the tree that may have children.
        total_token: nodes at most, the root included.
        levels: below the root, at most.
        least: probability of a path that is worth a node; None: any.
    """
    tokens, parents, depths, keys = [root], [0], [0], [0.0]
    paths: list[tuple[int, ...]] = [()]
    # Of equal keys the one that was found first comes first.
    found: list[tuple[float, int, int, int]] = []
    numbers, dearest = itertools.count(), math.inf if least is None else -math.log(least)

    def look(node: int) -> None:
        if depths[node] < levels:
            for token, probability in predict(paths[node]).items():
                cost = -keys[node] - math.log(probability)
                if cost <= dearest:
                    heapq.heappush(found, (cost, next(numbers), node, token))

    look(0)
    while found and len(tokens) < total_token:
        cost, _, parent, token = heapq.heappop(found)
        tokens.append(token)
        parents.append(parent)
        depths.append(depths[parent] + 1)
        keys.append(-cost)
        paths.append((*paths[parent], token))
        look(len(tokens) - 1)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths), torch.tensor(keys))
