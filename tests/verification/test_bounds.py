"""Losslessness by enumeration where the keys of nodes decide what is expanded."""

from __future__ import annotations

import pytest

from eagle.tree import growth as tree_module
from eagle.tree import selection
from eagle.verification import enumeration
from tests.verification.test_exact import ON_TREES, growth_case, pruned_case, trees_of, worst_pruned


@pytest.mark.parametrize("waits", [True, False])
def test_lossless_where_confidence_decides_what_is_expanded(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With early decisions too; and as on a device that nobody waits for."""
    worth_expanding = tree_module._worth_expanding
    monkeypatch.setattr(tree_module, "_worth_expanding", lambda keys, least, _: worth_expanding(keys, least, waits))
    cases = [
        [pruned_case(seed, early=seed % 2 == 1, bounds=bounds) for seed in range(40)]
        + [growth_case(100 * samples + seed, samples, bounds=bounds) for samples in (1, 2) for seed in range(10)]
        for bounds in (True, False)
    ]
    for case in cases[0]:
        assert max(result.distance for result in enumeration.exact(case, ON_TREES).values()) < 1e-9
    assert sum(trees_of(bounded) != trees_of(free) for bounded, free in zip(*cases, strict=True)) > 12


def test_ending_by_what_was_drawn_in_a_level_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second level unless the root's sample is some token."""

    def hindsight(root, found, *args):
        first = found.families[0]
        drawn = first.tokens[0, -first.samples :]
        return selection.select(root, found if (drawn == 1).any() else selection.gathered([first], []), *args)

    monkeypatch.setattr(tree_module, "select", hindsight)
    assert max(worst_pruned(range(40)).values()) > 0.01
