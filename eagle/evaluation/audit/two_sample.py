"""Whether two samples of token sequences have the same law: permutation tests, pooled and corrected for their number.

Every statistic here is quadratic in cell counts. The observations of both samples together are sorted into cells, and
of the n observations of a cell that holds a share s of all, n_first belong to the first sample of size N:

    statistic = sum over cells of weight * (n_first - s * N)^2

Pearson's chi-square is one, and so is the squared distance of the samples' mean embeddings (MMD; Gretton et al. 2012)
for a kernel that counts the prefixes two sequences share. Under equal laws all assignments of the observations to the
samples are equally likely, so p-values come from random ones and hold for samples of any size (Phipson and Smyth 2010:
the observed assignment counts as one of them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LEAST_EXPECTED = 5.0
"""Cells with a smaller expected count in either sample are merged: they would add noise and hardly any evidence."""


@dataclass(frozen=True)
class CellTest:
    """A statistic.

    Attributes:
        cells: (L, n) int64, in each of L partitions the cell of each observation, those of the first sample first;
            cells of different partitions have different numbers, 0 to C - 1.
        weights: (C,) float64.
    """

    cells: Ints
    weights: Floats


def chi_square(tokens: Ints, first: int) -> CellTest:
    """Pearson's chi-square of homogeneity, rare tokens merged.

    Args:
        tokens: (n,) int64, any values; those of the first sample first.
        first: size of the first sample, N.
    """
    cells = _with_rare_merged(_numbered(tokens), first)
    totals, n = np.bincount(cells), len(cells)
    return CellTest(cells[None], n * n / (first * (n - first) * totals))


def prefix_kernel(texts: Ints, first: int, shortest: int = 1) -> CellTest:
    """The squared MMD for the kernel that counts the prefixes, of ``shortest`` tokens or more, two texts share.

    Args:
        texts: (n, k) int64, any values; those of the first sample first.
        first: size of the first sample, N.
        shortest: prefix that counts.
    """
    n, k = texts.shape
    partitions: list[Ints] = []
    cells = 0
    for length in range(shortest, k + 1):
        numbered = _numbered(texts[:, :length])
        partitions.append(numbered + cells)
        cells += int(numbered.max()) + 1
    return CellTest(np.stack(partitions), np.full(cells, (n / (first * (n - first))) ** 2))


def permuted(tests: Sequence[CellTest], first: int, permutations: int, rng: np.random.Generator) -> Floats:
    """The statistics of the samples, and of random assignments of the observations to samples of the same sizes.

    Args:
        tests: of the same n observations.
        first: size of the first sample.
        permutations: how many assignments.
        rng: source of randomness.

    Returns:
        (tests, 1 + permutations) float64; the samples' own first. A column is one assignment, in all tests the same.
    """
    n = tests[0].cells.shape[1]
    offsets = np.cumsum([0, *(len(test.weights) for test in tests)])
    cells = np.concatenate([test.cells + offset for test, offset in zip(tests, offsets[:-1], strict=True)])
    weights = np.zeros((len(tests), offsets[-1]))
    for row, test in enumerate(tests):
        weights[row, offsets[row] : offsets[row + 1]] = test.weights
    expected = np.bincount(cells.reshape(-1), minlength=offsets[-1]) * (first / n)
    found = np.empty((len(tests), 1 + permutations))
    chosen = np.arange(first)
    for column in range(1 + permutations):
        counts = np.bincount(cells[:, chosen].reshape(-1), minlength=offsets[-1])
        found[:, column] = weights @ (counts - expected) ** 2
        chosen = rng.choice(n, first, replace=False, shuffle=False)
    return found


def pooled(statistics: Sequence[Floats]) -> Floats:
    """One statistic of several: the sum of all, each with its permutations' mean and deviation taken out.

    Args:
        statistics: (1 + permutations,) each; of the same observations with the same assignments, or independent.

    Returns:
        (1 + permutations,) float64.
    """
    total = np.zeros(len(statistics[0]))
    for values in statistics:
        deviation = values.std()
        # What is the same under all assignments says nothing.
        if deviation > 1e-12 * max(1.0, abs(values[0])):
            total += (values - values.mean()) / deviation
    return total


def p_value(statistics: Floats) -> float:
    """The share of assignments, the observed one included, whose statistic is as large as the observed one.

    Args:
        statistics: (1 + permutations,), the observed one first.
    """
    observed = statistics[0]
    # Equal counts may differ in the last bits of their sums.
    return float(np.mean(statistics >= observed - 1e-9 * max(1.0, abs(observed))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): those of at most alpha are all true with probability alpha or
    less where none of the hypotheses is wrong, whatever the tests have to do with each other."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def enough_permutations(tests: int, alpha: float, least: int = 9999) -> int:
    """Permutations with which the smallest p-value, corrected for so many tests, is a tenth of alpha or less."""
    return max(least, math.ceil(10 * tests / alpha))


def _numbered(values: NDArray[Any]) -> Ints:
    """(n,) or (n, k) -> (n,) int64: equal rows get equal numbers, from 0 on."""
    _, numbers = np.unique(values, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)


def _with_rare_merged(cells: Ints, first: int) -> Ints:
    """Merge the cells that are rare in the smaller sample into one, and that with the next rarest if it is rare too."""
    n = len(cells)
    expected = np.bincount(cells) * (min(first, n - first) / n)
    rare = expected < LEAST_EXPECTED
    if 0.0 < expected[rare].sum() < LEAST_EXPECTED and not rare.all():
        rare[np.where(rare, np.inf, expected).argmin()] = True
    return _numbered(np.where(rare, -1, np.arange(len(rare)))[cells])
