"""Permutation tests of two samples: right under equal laws, sharp under different ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, chi2_contingency, kstest

from eagle.evaluation.audit.two_sample import (
    LEAST_EXPECTED,
    Floats,
    Ints,
    chi_square,
    enough_permutations,
    holm,
    p_value,
    permuted,
    pooled,
    prefix_kernel,
)

FIRST, SECOND, LENGTH = 100, 200, 3
LAW = np.array([0.4, 0.3, 0.15, 0.1, 0.03, 0.02])


def two_samples(rng: np.random.Generator, law: Floats = LAW, other: Floats = LAW) -> Ints:
    """Texts of independent tokens, those of the first sample first."""
    first = rng.choice(len(law), (FIRST, LENGTH), p=law)
    return np.concatenate([first, rng.choice(len(other), (SECOND, LENGTH), p=other)])


def statistics(texts: Ints, rng: np.random.Generator, permutations: int = 199) -> list[Floats]:
    tests = [*(chi_square(texts[:, place], FIRST) for place in range(LENGTH)), prefix_kernel(texts, FIRST)]
    found = permuted(tests, FIRST, permutations, rng)
    return [*found, pooled(found[:-1])]


def test_chi_square_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    texts = two_samples(rng, LAW[:4] / LAW[:4].sum(), np.array([0.3, 0.3, 0.2, 0.2]))
    tokens = texts[:, 0]
    found = permuted([chi_square(tokens, FIRST)], FIRST, 9999, rng)[0]
    table = np.array([np.bincount(tokens[:FIRST], minlength=4), np.bincount(tokens[FIRST:], minlength=4)])
    by_scipy = chi2_contingency(table)
    assert by_scipy.expected_freq.min() > LEAST_EXPECTED
    assert found[0] == pytest.approx(by_scipy.statistic)
    assert p_value(found) == pytest.approx(by_scipy.pvalue, rel=0.2)


def test_the_kernel_is_the_distance_of_mean_embeddings() -> None:
    texts = two_samples(np.random.default_rng(1))
    shared = np.cumprod(texts[:, None] == texts[None], axis=2)[:, :, 1:].sum(-1)
    first, second = slice(0, FIRST), slice(FIRST, None)
    squared = shared[first, first].mean() + shared[second, second].mean() - 2 * shared[first, second].mean()
    found = permuted([prefix_kernel(texts, FIRST, shortest=2)], FIRST, 1, np.random.default_rng(0))
    assert found[0, 0] == pytest.approx(squared)


def test_p_values_are_uniform_under_equal_laws() -> None:
    rng = np.random.default_rng(2)
    found = np.array([[p_value(values) for values in statistics(two_samples(rng), rng)] for _ in range(300)])
    for p_values in found.T:
        assert kstest(p_values, "uniform").pvalue > 1e-3
        assert np.count_nonzero(p_values <= 0.05) <= binom.ppf(0.9999, 300, 0.05)
    # Corrected for their number, the tests of one pair of samples hardly ever reject together.
    rejected = np.count_nonzero([min(holm(list(row))) <= 0.05 for row in found])
    assert rejected <= binom.ppf(0.9999, 300, 0.05)


def test_a_shifted_law_is_seen_by_every_test() -> None:
    rng = np.random.default_rng(3)
    shifted = np.array([0.15, 0.55, 0.15, 0.1, 0.03, 0.02])
    found = np.array([[p_value(v) for v in statistics(two_samples(rng, LAW, shifted), rng)] for _ in range(30)])
    assert ((found <= 0.05).mean(axis=0) > 0.9).all()


def test_the_kernel_sees_what_single_tokens_do_not_show() -> None:
    rng = np.random.default_rng(4)
    texts = rng.integers(2, size=(FIRST + SECOND, LENGTH))
    # In the first sample the first two tokens are always the same; each alone is as likely as in the second.
    texts[:FIRST, 1] = texts[:FIRST, 0]
    *tokens, together, _ = statistics(texts, rng, permutations=1999)
    assert p_value(together) < 0.001
    assert min(p_value(values) for values in tokens) > 0.01


def test_pooling_finds_a_bias_too_small_for_each() -> None:
    rng = np.random.default_rng(5)
    shifted = np.array([0.34, 0.36, 0.15, 0.1, 0.03, 0.02])
    pairs = [statistics(two_samples(rng, LAW, shifted), rng, permutations=1999)[0] for _ in range(40)]
    assert min(holm([p_value(values) for values in pairs])) > 0.05
    assert p_value(pooled(pairs)) < 0.01
    same = [statistics(two_samples(rng), rng, permutations=1999)[0] for _ in range(40)]
    assert p_value(pooled(same)) > 0.01


@pytest.mark.parametrize("first", [30, 270])
def test_rare_tokens_are_merged(first: int) -> None:
    # One token for half of all, twenty for the rest: too rare alone, and not together.
    tokens = np.concatenate([np.zeros(150, dtype=np.int64), 1 + np.arange(150) % 20])
    cells = chi_square(np.random.default_rng(6).permutation(tokens), first).cells
    assert np.bincount(cells[0]).tolist() == [150, 150]
    # Together too rare as well: merged with the rarest of the others.
    tokens = np.array([0] * 150 + [1] * 130 + [2, 2, 3, 4] * 5)
    cells = chi_square(tokens, first).cells
    assert sorted(np.bincount(cells[0]).tolist()) == [150, 150]


def test_samples_of_one_token_do_not_differ() -> None:
    rng = np.random.default_rng(7)
    texts = np.full((FIRST + SECOND, LENGTH), 9)
    found = statistics(texts, rng, permutations=99)
    assert [p_value(values) for values in found] == [1.0] * len(found)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("tests", "alpha"), [(1, 0.05), (18, 0.01), (500, 0.001)])
def test_permutations_suffice_to_reject(tests: int, alpha: float) -> None:
    smallest = 1 / (1 + enough_permutations(tests, alpha))
    assert min(holm([smallest, *[1.0] * (tests - 1)])) <= alpha / 10
