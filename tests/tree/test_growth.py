"""Growth against a plain reimplementation, on tables of log-probabilities."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import pytest
import torch

from eagle.tree import growth
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import ONE_HOT, DraftTree
from eagle.tree.growth import grow
from eagle.tree.shape import CHAIN, HYBRID, Sampling, TreeShape

VOCAB = 7
SAME = torch.arange(VOCAB)


class Table:
    """A drafter that is a table: what follows a path of draft ids, each of which is a target id with ``offset``."""

    def __init__(self, seed: int, offset: int = 0) -> None:
        self.seed, self.offset = seed, offset
        self.paths: list[tuple[int, ...]] = [()]

    def logits(self, path: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, path)) % 2**31)
        return torch.randn(VOCAB, generator=generator) * 3

    def expand(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        self.paths = [
            (*self.paths[parent], token - self.offset)
            for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True)
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
        likely = math.log(shape.least_expanded or 1e-30)
        frontier = [child for child in heapq.nlargest(shape.top_k, children) if child[0] >= likely]
    return {path for _, path in heapq.nlargest(shape.total_token - 1, candidates)}


# Such trees end after different levels.
BOUNDED = TreeShape(40, 3, 4, least_expanded=0.35)


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


@pytest.mark.parametrize(
    "shape", [TreeShape(2, 0, 3), TreeShape(9, 3, 3), TreeShape(60, 5, 10), TreeShape(30, 2, 7), BOUNDED]
)
@pytest.mark.parametrize("seed", range(5))
def test_growth_is_the_dynamic_tree(shape: TreeShape, seed: int) -> None:
    table = Table(seed, offset=10)
    levels = shape.levels(room=100)
    tree = grow(99, table.logits(()), table.expand, SAME + 10, shape, levels)
    paths = paths_of(tree)
    assert tree.tokens[0] == 99
    assert {tuple(token - 10 for token in path) for path in paths[1:]} == reference(Table(seed), shape, levels)
    assert [len(path) for path in paths] == tree.depths.tolist()
    assert all(parent < node for node, parent in enumerate(tree.parents.tolist()) if node)
    for children in tree.children:
        keys = tree.keys[children].tolist()
        assert keys == sorted(keys, reverse=True)
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
    tree = grow(0, certain, lambda tokens, parents: certain.expand(len(tokens), -1), SAME, shape, 7)
    assert paths_of(tree)[:5] == [(), (2,), (2, 2), (2, 2, 2), (2, 2, 2, 2)]


def test_what_is_not_worth_it_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that nobody waits for it is, and the tree is the same."""
    worth_expanding = growth._worth_expanding
    frontiers = []
    for seed in range(5):
        table = Table(seed)
        asked: list[int] = []

        def expand(tokens: torch.Tensor, parents: torch.Tensor, table: Table = table, asked: list[int] = asked):
            asked.append(len(tokens))
            return table.expand(tokens, parents)

        tree = grow(0, table.logits(()), expand, SAME, BOUNDED, 4)
        frontiers.append(tuple(asked))
        with monkeypatch.context() as context:
            context.setattr(
                growth, "_worth_expanding", lambda keys, least, _: worth_expanding(keys, least, waits=False)
            )
            there = grow(0, table.logits(()), Table(seed).expand, SAME, BOUNDED, 4)
        assert paths_of(there) == paths_of(tree)
        assert torch.equal(there.keys, tree.keys)
    assert len({len(asked) for asked in frontiers}) > 1
    assert max(count for asked in frontiers for count in asked) < BOUNDED.top_k


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("bound", [0.25, 0.125, 0.1])
def test_a_key_of_exactly_the_bound_reaches_it(bound: float, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However float32 rounds its logarithm."""
    worth_expanding = growth._worth_expanding
    monkeypatch.setattr(growth, "_worth_expanding", lambda keys, least, _: worth_expanding(keys, least, waits))
    logits = torch.tensor([1.0 - bound, bound]).log()
    never = Table(0).expand
    assert len(grow(0, logits, never, torch.arange(2), TreeShape(10, 0, 2, least=bound, fewest=2), 1)) == 3
    deeper = TreeShape(3, 1, 1, least_expanded=1.0 - bound)
    assert len(grow(0, logits, lambda tokens, parents: logits[None], torch.arange(2), deeper, 2)) == 3
    early = Sampling(threshold=0.01, rho=0.5, samples=0, early=bound, early_nodes=2)
    assert len(grow(0, logits, never, torch.arange(2), TreeShape(10, 0, 2, early, least=0.9, fewest=2), 1)) == 3


def test_best_is_the_smaller_tree() -> None:
    large = grow(0, Table(3).logits(()), Table(3).expand, SAME, TreeShape(25, 3, 4), 4)
    assert len(large) == 25
    small = grow(0, Table(3).logits(()), Table(3).expand, SAME, TreeShape(9, 3, 4), 4)
    assert paths_of(large.best(9)) == paths_of(small)


def test_room_bounds_the_levels() -> None:
    assert TreeShape(60, 7, 10).levels(room=100) == 8
    assert TreeShape(60, 7, 10).levels(room=2) == 2
    assert TreeShape(3, 7, 10).levels(room=100) == 2


def grown_hybrid(seed: int, shape: TreeShape) -> DraftTree:
    table = Table(seed, offset=10)
    source = torch.Generator().manual_seed(seed)

    def choose(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mass = weights.sum(-1, keepdim=True)
        return torch.multinomial(weights + (mass == 0), 1, generator=source), mass

    chance = Chance(lambda logits: (logits / 0.8).softmax(-1), lambda _: choose)
    return grow(99, table.logits(()), table.expand, SAME + 10, shape, shape.levels(room=100), chance)


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_hybrid_trees_keep_their_order_and_their_laws(samples: int, seed: int) -> None:
    shape = TreeShape(20, 3, 4, Sampling(threshold=0.05, rho=0.6, samples=samples))
    tree = grown_hybrid(seed, shape)
    keys = tree.keys.tolist()
    assert tree.laws is not None
    assert keys == sorted(keys, reverse=True)
    drawn, below = tree.laws.row_of != ONE_HOT, tree.ancestors().T
    kinds = set()
    for node, children in enumerate(tree.children):
        # No child above its parent, siblings in the order in which something was first drawn in their subtrees.
        assert all(keys[child] <= keys[node] + 1e-6 for child in children)
        first = [min((below[child] & drawn).nonzero().flatten().tolist(), default=len(tree)) for child in children]
        assert list(zip(first, children, strict=True)) == sorted(zip(first, children, strict=True))
        elder: list[int] = []
        picked = [child for child in children if tree.laws.row_of[child] == ONE_HOT]
        for child in children:
            column, row = int(tree.laws.columns[child]), int(tree.laws.row_of[child])
            assert int(tree.tokens[child]) == column + 10
            kinds.add(row == ONE_HOT)
            if row != ONE_HOT:
                law = tree.laws.rows[row]
                assert float(law.sum()) == pytest.approx(1.0, abs=1e-6)
                assert law[column] > 0
                # Neither a sibling that was picked nor one that was drawn before can be drawn.
                assert all(law[int(tree.laws.columns[other])] == 0 for other in [*picked, *elder])
                elder.append(child)
    assert kinds == {True, False}


@pytest.mark.parametrize("seed", range(6))
def test_early_nodes_come_level_by_level_and_the_rest_by_key(seed: int) -> None:
    sampling = Sampling(threshold=0.05, rho=0.6, samples=2, early=0.03, early_nodes=9)
    tree = grown_hybrid(seed, TreeShape(20, 3, 4, sampling))
    plain = grown_hybrid(seed, TreeShape(20, 3, 4, replace(sampling, early=None)))
    keys, depths = tree.keys.tolist(), tree.depths.tolist()
    early = [node for node in range(1, 10) if keys[node] >= math.log(0.03)]
    assert early == list(range(1, len(early) + 1))
    assert len(early) == min(9, sum(key >= math.log(0.03) for key in plain.keys.tolist()[1:]))
    order = [(depths[node], -keys[node]) for node in early]
    assert order == sorted(order)
    rest = keys[len(early) + 1 :]
    assert rest == sorted(rest, reverse=True)
    assert all(parent < node for node, parent in enumerate(tree.parents.tolist()) if node)


@pytest.mark.parametrize("early", [None, 0.1])
def test_a_smaller_hybrid_tree_is_part_of_a_larger_one(early: float | None) -> None:
    sampling = Sampling(threshold=0.05, rho=0.6, samples=2, early=early)
    large, small = (grown_hybrid(3, TreeShape(size, 3, 4, sampling)) for size in (30, 20))
    pruned = large.best(20)
    assert paths_of(pruned) == paths_of(small)
    assert paths_of(large)[:20] == paths_of(small)
    assert pruned.laws is not None
    assert small.laws is not None
    for node in range(20):
        rows = [laws.rows[laws.row_of[node]] if laws.row_of[node] >= 0 else None for laws in (pruned.laws, small.laws)]
        assert (rows[0] is None) == (rows[1] is None)
        if rows[0] is not None:
            torch.testing.assert_close(rows[0], rows[1])


def test_a_chain_is_one_sampled_path() -> None:
    shape = TreeShape(5, 3, 1, Sampling(threshold=None, rho=1.0, samples=1))
    tree = grown_hybrid(1, shape)
    assert shape.kind == CHAIN
    assert tree.parents.tolist() == [0, 0, 1, 2, 3]
    assert tree.laws is not None
    assert tree.laws.row_of.tolist() == [-1, 0, 1, 2, 3]


def test_shapes_follow_the_temperature() -> None:
    shape = TreeShape(20, 3, 4, Sampling(threshold=0.08, rho=0.6, samples=1))
    assert shape.kind == HYBRID
    assert shape.at(1.0) == shape.at(1.5) == shape
    assert shape.at(0.5).sampling == Sampling(threshold=0.02, rho=0.15, samples=1)
    early = replace(shape, sampling=replace(shape.sampling, early=0.04, early_nodes=5))
    assert early.at(0.5).sampling == Sampling(threshold=0.02, rho=0.15, samples=1, early=0.01, early_nodes=5)
    assert early.at(0.0) == TreeShape(20, 3, 4)
    assert shape.at(0.0) == TreeShape(20, 3, 4)
    chain = TreeShape(5, 3, 1, Sampling(threshold=None, rho=1.0, samples=1))
    assert chain.at(0.5).kind == CHAIN
    assert chain.at(0.0) == TreeShape(5, 3, 1)


def test_a_head_of_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="drafter's logits contain NaN"):
        grow(0, torch.full((VOCAB,), torch.nan), Table(0).expand, SAME, TreeShape(5, 0, 3), 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", -0.1),
        ("threshold", 1.1),
        ("rho", 0.0),
        ("rho", 1.01),
        ("samples", 4),
        ("samples", -1),
        ("draft_temperature", 0.0),
        ("draft_temperature", float("nan")),
        ("early", 0.0),
        ("early", 1.5),
        ("early_nodes", 0),
    ],
)
def test_impossible_sampling_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Sampling(**{"threshold": 0.1, "rho": 0.5, "samples": 1} | {field: value})


@pytest.mark.parametrize(("total_token", "depth", "top_k"), [(1, 3, 3), (8, -1, 3), (8, 2, 0), (-2, 1, 1)])
def test_impossible_shapes_are_refused(total_token: int, depth: int, top_k: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        TreeShape(total_token, depth, top_k)
