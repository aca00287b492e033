"""Losslessness by enumeration where tokens from elsewhere compete with those that a model drafts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from eagle.tree.retrieval import NO_COLUMN, Picks, Retrieved
from eagle.tree.shape import Sampling, TreeShape
from eagle.verification import RULES, enumeration
from eagle.verification.cases import grown, random_table
from eagle.verification.enumeration import Case
from tests.verification.test_exact import trees_of

ON_TREES = [RULES["tokenwise"], RULES["hsd"]]


def looked_up(seed: int, vocabulary: int, often: float) -> dict[tuple[int, ...], dict[int, float]]:
    """One or two tokens behind some paths, at times surely."""
    source = random.Random(f"looked up {seed}")  # noqa: S311
    found: dict[tuple[int, ...], dict[int, float]] = {}
    paths: list[tuple[int, ...]] = [()]
    while paths:
        path = paths.pop()
        if source.random() < often:
            tokens = source.sample(range(vocabulary), source.choice([1, 1, 2]))
            likely = source.choice([(0.9, 0.08), (0.5, 0.4), (0.3, 0.2)])[: len(tokens)]
            found[path] = dict(zip(tokens, likely, strict=True))
        if len(path) < 2:
            paths += [(*path, token) for token in range(vocabulary)]
    return found


def retrieval_case(seed: int, samples: int = 1, least_expanded: float | None = None) -> Case:
    """A few nodes out of more candidates, of which some were looked up, also tokens that the draft has not."""
    source = random.Random(seed)  # noqa: S311
    depth, top_k = source.choice([(0, 2), (1, 1), (1, 2)]) if samples == 1 else (source.choice([0, 1]), 1)
    early = source.choice([None, 0.1, 0.3])
    sampling = Sampling(source.choice([None, 0.1, 0.3]), source.choice([0.4, 0.7, 1.0]), samples, 1.0, early, 2)
    least = source.choice([None, None, 0.05, 0.2])
    shape = TreeShape(
        source.randint(3, 5 + samples), depth, top_k, sampling, least=least, fewest=source.choice([1, 1, 3])
    )
    shape = replace(shape, least_expanded=least_expanded)
    target = random_table(4, seed, zeros=source.choice([0.0, 0.3]))
    draft = random_table(4, seed + 1, zeros=source.choice([0.0, 0.2]), like=target)
    table = looked_up(seed, 4, source.choice([0.3, 0.8]))
    support = source.choice([(0, 1, 2, 3), (0, 2, 3), (1, 3)])
    if source.random() < 0.2:
        # Nodes may be left out without look-up too.
        return grown("least", replace(shape, least=least or 0.1), target, draft, support)
    return grown("retrieved", shape, target, draft, support, predict=lambda path: table.get(tuple(path), {}))


def drawn_decides(seed: int) -> Case:
    """Behind the root's one pick a token is drawn, and what is looked up behind that token decides whether the root's
    sample still finds a place: surely more behind one token, nothing behind the others."""
    source = random.Random(seed)  # noqa: S311
    vocabulary, likely = source.choice([3, 4]), source.uniform(0.5, 0.7)
    top = [likely, *[(1 - likely) / (vocabulary - 1)] * (vocabulary - 1)]
    even = [1 / vocabulary] * vocabulary

    def draft(path: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(even if path else top, dtype=torch.float64)

    table = {(0, seed % vocabulary): {source.randrange(vocabulary): 0.95}, (0, seed % vocabulary, 1): {2: 0.9}}
    sampling = Sampling(likely / vocabulary * 1.02, source.choice([0.4, 0.5, 0.7]), 1)
    shape = TreeShape(source.randint(4, 5), 1, 1, sampling)
    target = random_table(vocabulary, seed, like=draft)
    return grown("drawn", shape, target, draft, predict=lambda path: table.get(tuple(path), {}))


def worst(cases: Sequence[Case]) -> dict[str, float]:
    results = [enumeration.exact(case, ON_TREES) for case in cases]
    return {rule.name: max(result[rule.name].distance for result in results) for rule in ON_TREES}


@pytest.mark.parametrize("samples", [1, 2])
def test_lossless_with_tokens_from_elsewhere(samples: int) -> None:
    cases = [retrieval_case(1000 * samples + seed, samples) for seed in range(40 if samples == 1 else 20)]
    assert max(worst(cases).values()) < 1e-9
    # They come with draws in the same tree, in the model's levels and behind them.
    trees = [tree for case in cases for _, tree in case.trees]
    assert sum(tree.laws is not None and bool((tree.laws.columns[1:] < 0).any()) for tree in trees) > 10


def test_lossless_where_look_up_goes_on_behind_what_is_not_expanded() -> None:
    bounds = [0.5, 0.7, 0.9, 1.0]
    cases = [retrieval_case(4000 + seed, least_expanded=bounds[seed % 4]) for seed in range(40)]
    assert max(worst(cases).values()) < 1e-9
    free = [retrieval_case(4000 + seed) for seed in range(40)]
    assert sum(trees_of(one) != trees_of(other) for one, other in zip(cases, free, strict=True)) > 5


def test_lossless_where_what_is_drawn_decides_what_is_looked_up() -> None:
    cases = [drawn_decides(seed) for seed in range(30)]
    assert max(worst(cases).values()) < 1e-9
    assert sum(len({tuple(tree.parents.tolist()) for _, tree in case.trees}) > 1 for case in cases) > 10


def test_a_token_that_the_draft_knows_needs_its_draft_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a token without one verification takes it that no sample was drawn for it."""
    beside = Retrieved.beside

    def without(retrieved: Retrieved, picks: Picks, parent_keys: torch.Tensor, q: torch.Tensor) -> Picks:
        found = beside(retrieved, picks, parent_keys, q)
        proposed = torch.arange(found.columns.shape[1]) < picks.columns.shape[1]
        return replace(found, columns=torch.where(proposed, found.columns, NO_COLUMN))

    cases = [retrieval_case(2000 + seed) for seed in range(20)]
    monkeypatch.setattr(Retrieved, "beside", without)
    assert min(worst(cases).values()) > 0.01
