"""Growth against a plain reimplementation, on tables of log-probabilities."""

from __future__ import annotations

import heapq

import pytest
import torch

from eagle.model.tree import DraftTree, TreeShape, grow

VOCAB = 7


class Table:
    """A drafter that is a table: what follows a path of draft ids."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.paths: list[tuple[int, ...]] = [()]

    def logits(self, path: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, path)) % 2**31)
        return torch.randn(VOCAB, generator=generator) * 3

    def expand(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        self.paths = [
            (*self.paths[parent], token) for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True)
        ]
        return torch.stack([self.logits(path) for path in self.paths])


def reference(table: Table, shape: TreeShape, levels: int) -> set[tuple[int, ...]]:
    """Paths of the tree, by the words of the paper."""
    candidates: list[tuple[float, tuple[int, ...]]] = []
    frontier: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for _ in range(levels):
        children = []
        for score, path in frontier:
            log_probs = table.logits(path).log_softmax(-1)
            best = log_probs.topk(min(shape.top_k, VOCAB))
            children += [
                (score + value, (*path, token))
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        candidates += children
        frontier = heapq.nlargest(shape.top_k, children)
    return {path for _, path in heapq.nlargest(shape.total_token - 1, candidates)}


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


@pytest.mark.parametrize("shape", [TreeShape(2, 0, 3), TreeShape(9, 3, 3), TreeShape(60, 5, 10), TreeShape(30, 2, 7)])
@pytest.mark.parametrize("seed", range(5))
def test_growth_is_the_dynamic_tree(shape: TreeShape, seed: int) -> None:
    table = Table(seed)
    levels = shape.levels(room=100)
    tree = grow(99, table.logits(()), table.expand, lambda ids: ids + 10, shape, levels)
    paths = paths_of(tree)
    assert tree.tokens[0] == 99
    assert {tuple(token - 10 for token in path) for path in paths[1:]} == reference(Table(seed), shape, levels)
    assert [len(path) for path in paths] == tree.depths.tolist()
    assert all(parent < node for node, parent in enumerate(tree.parents.tolist()) if node)
    for children in tree.children():
        scores = tree.scores[children].tolist()
        assert scores == sorted(scores, reverse=True)
    seen = tree.ancestors()
    for node, path in enumerate(paths):
        assert {paths[other] for other in seen[node].nonzero().flatten().tolist()} == {
            path[:length] for length in range(len(path) + 1)
        }


def test_ties_never_orphan_a_node() -> None:
    """A head that is certain gives every path the score 0; parents and elders must still come first."""
    certain = torch.full((VOCAB,), -torch.inf)
    certain[2] = 0.0
    shape = TreeShape(total_token=5, depth=6, top_k=4)
    tree = grow(0, certain, lambda tokens, parents: certain.expand(len(tokens), -1), lambda ids: ids, shape, 7)
    assert paths_of(tree)[:5] == [(), (2,), (2, 2), (2, 2, 2), (2, 2, 2, 2)]


def test_best_is_the_smaller_tree() -> None:
    large = grow(0, Table(3).logits(()), Table(3).expand, lambda ids: ids, TreeShape(25, 3, 4), 4)
    assert len(large) == 25
    small = grow(0, Table(3).logits(()), Table(3).expand, lambda ids: ids, TreeShape(9, 3, 4), 4)
    assert paths_of(large.best(9)) == paths_of(small)


def test_room_bounds_the_levels() -> None:
    assert TreeShape(60, 7, 10).levels(room=100) == 8
    assert TreeShape(60, 7, 10).levels(room=2) == 2
    assert TreeShape(3, 7, 10).levels(room=100) == 2


@pytest.mark.parametrize(("total_token", "depth", "top_k"), [(1, 3, 3), (8, -1, 3), (8, 2, 0), (-2, 1, 1)])
def test_impossible_shapes_are_refused(total_token: int, depth: int, top_k: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        TreeShape(total_token, depth, top_k)
