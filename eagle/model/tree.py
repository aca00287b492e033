"""The draft tree, and growing it: EAGLE-3's dynamic tree.

Source: EAGLE-2 (Li et al. 2024, section 4: expansion and re-ranking by the draft's own confidence), which EAGLE-3
(Li et al. 2025) keeps. Nothing here knows a model: growth sees log-probabilities and asks for more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.errors import InputError

AUTO_TOTAL_TOKEN = -1


@dataclass(frozen=True)
class TreeShape:
    """How large a tree may grow.

    Attributes:
        total_token: nodes of the final tree, the root included.
        depth: expansions after the first level, so the tree has at most ``depth + 1`` levels below the root.
        top_k: children of an expanded node, and expanded nodes a level.
    """

    total_token: int
    depth: int
    top_k: int

    def __post_init__(self) -> None:
        if self.total_token < 2:
            raise InputError(
                f"total_token must be at least 2 (the root and one draft) or {AUTO_TOTAL_TOKEN} (tune), "
                f"not {self.total_token}"
            )
        if self.depth < 0:
            raise InputError(f"depth must be 0 or more, not {self.depth}")
        if self.top_k < 1:
            raise InputError(f"top_k must be 1 or more, not {self.top_k}")

    def levels(self, room: int) -> int:
        """Levels worth growing when only ``room`` more can be emitted; N - 1 nodes are never deeper than N - 1."""
        return min(self.depth + 1, self.total_token - 1, room)

    @property
    def most_drafted(self) -> int:
        """Nodes that growth may hand to the head, summed over the levels: the room a head's cache needs."""
        return self.top_k * self.depth


@dataclass(frozen=True)
class DraftTree:
    """A drafted tree of N nodes. Node 0 is the root, the last committed token; parents come before their children,
    and the children of a node, in increasing id, are in the order in which they are verified (best first).

    Structure lives on the host, where the walk through the tree takes place.

    Attributes:
        tokens: (N,) int64 on the host, target vocabulary ids.
        parents: (N,) int64 on the host; the root is its own parent.
        depths: (N,) int64 on the host; 0 for the root.
        scores: (N,) float32 on the head's device, the head's cumulative log-probability of each node; 0 for the root.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def draft_length(self) -> int:
        """Tokens on the longest root-to-leaf path, the root included."""
        return int(self.depths.max()) + 1

    def children(self) -> list[list[int]]:
        """For each node the ids of its children in the order of verification."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parents.tolist()):
            if node:
                children[parent].append(node)
        return children

    def ancestors(self) -> Tensor:
        """(N, N) bool on the host; row i marks node i and all its ancestors, which are what node i attends to."""
        seen = torch.eye(len(self), dtype=torch.bool)
        current = self.parents
        for _ in range(self.draft_length - 1):
            seen.scatter_(1, current[:, None], True)
            current = self.parents[current]
        return seen

    def best(self, total_token: int) -> DraftTree:
        """The subtree of the ``total_token`` best nodes by score (ancestors are never worse than descendants)."""
        if total_token >= len(self):
            return self
        order = torch.argsort(self.scores, descending=True, stable=True)[:total_token].cpu()
        kept = order.sort().values
        renumbered = torch.zeros(len(self), dtype=torch.int64)
        renumbered[kept] = torch.arange(len(kept))
        return DraftTree(
            tokens=self.tokens[kept],
            parents=renumbered[self.parents[kept]],
            depths=self.depths[kept],
            scores=self.scores[kept.to(self.scores.device)],
        )


def root_only(token: int) -> DraftTree:
    """A tree without drafts: scoring it is one step of autoregressive decoding.

    Args:
        token: the last committed token.
    """
    zero = torch.zeros(1, dtype=torch.int64)
    return DraftTree(tokens=torch.tensor([token]), parents=zero, depths=zero, scores=torch.zeros(1))


Expand = Callable[[Tensor, Tensor], Tensor]
"""``expand(tokens, parents) -> logits``: run the head on one level.

tokens: (k,) draft ids of the frontier; parents: (k,) index of each one's parent in the frontier before it (all 0 for
the first level, whose parent is the root). Returns (k, draft vocabulary) logits of what follows each of them.
"""


def grow(
    root: int, root_logits: Tensor, expand: Expand, to_target: Callable[[Tensor], Tensor], shape: TreeShape, levels: int
) -> DraftTree:
    """Grow EAGLE-3's dynamic tree below ``root``.

    Level by level the ``top_k`` candidates of highest cumulative log-probability are expanded into ``top_k`` children
    each; of all candidates the ``total_token - 1`` best stay. Ties go to the smaller depth, then to the elder, so
    a node's ancestors and elder siblings are always in the tree with it. One transfer to the host, at the end.

    Args:
        root: last committed token, a target id.
        root_logits: (draft vocabulary,) logits of what follows the root.
        expand: runs the head on a frontier, see ``Expand``.
        to_target: maps draft ids to target ids, elementwise.
        shape: bounds of the tree.
        levels: levels to grow, at least 1 (see ``TreeShape.levels``).
    """
    scores, tokens = _children(root_logits[None], shape.top_k)
    scores, tokens = scores[0], tokens[0]
    parents = torch.zeros_like(tokens)
    all_scores, all_tokens, all_parents, level_sizes = [scores], [tokens], [parents], [len(scores)]
    frontier = torch.arange(len(scores), device=scores.device)
    came_from = parents
    first = 1
    for _ in range(levels - 1):
        child_scores, child_tokens = _children(expand(tokens[frontier], came_from), shape.top_k)
        width = child_scores.shape[1]
        parents = (first + frontier)[:, None].expand(-1, width).reshape(-1)
        first += len(tokens)
        scores = (scores[frontier][:, None] + child_scores).reshape(-1)
        tokens = child_tokens.reshape(-1)
        all_scores.append(scores)
        all_tokens.append(tokens)
        all_parents.append(parents)
        level_sizes.append(len(scores))
        frontier = _best(scores, shape.top_k)
        came_from = frontier // width
    return _select(root, all_scores, all_tokens, all_parents, level_sizes, to_target, shape.total_token)


def _children(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """(k, V) logits -> log-probabilities and ids, both (k, top_k), best first."""
    log_probs = logits.log_softmax(-1, dtype=torch.float32)
    values, tokens = log_probs.topk(min(top_k, logits.shape[-1]), dim=-1)
    return values, tokens


def _best(scores: Tensor, count: int) -> Tensor:
    """Ids of the ``count`` highest scores, best first, ties to the smaller id (``topk`` promises no order for ties)."""
    return torch.argsort(scores, descending=True, stable=True)[:count]


def _select(
    root: int,
    all_scores: list[Tensor],
    all_tokens: list[Tensor],
    all_parents: list[Tensor],
    level_sizes: list[int],
    to_target: Callable[[Tensor], Tensor],
    total_token: int,
) -> DraftTree:
    """Keep the best candidates of all levels; candidate i is numbered i + 1, the root is 0."""
    scores, tokens, parents = torch.cat(all_scores), torch.cat(all_tokens), torch.cat(all_parents)
    kept = _best(scores, total_token - 1).sort().values
    device = scores.device
    depths = torch.repeat_interleave(
        torch.arange(1, len(level_sizes) + 1), torch.tensor(level_sizes), output_size=len(scores)
    )
    renumbered = torch.zeros(len(scores) + 1, dtype=torch.int64, device=device)
    renumbered[kept + 1] = torch.arange(1, len(kept) + 1, device=device)
    host = torch.stack([to_target(tokens[kept]), renumbered[parents[kept]], kept]).cpu()
    zero = torch.zeros(1, dtype=torch.int64)
    return DraftTree(
        tokens=torch.cat([torch.tensor([root]), host[0]]),
        parents=torch.cat([zero, host[1]]),
        depths=torch.cat([zero, depths[host[2]]]),
        scores=torch.cat([scores.new_zeros(1), scores[kept]]),
    )
