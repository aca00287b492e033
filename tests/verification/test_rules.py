"""Rules on single trees: against the plain recursion, at the edges of numbers, and in what they refuse."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.drawing import draw, draw_rows
from eagle.verification import RULES
from eagle.verification.enumeration import outcomes
from eagle.verification.families import Behind, Families
from eagle.verification.verdict import endings
from tests.verification import oracle
from tests.verification.trees import chain_tree, picked_tree, random_law, random_probs, random_tree

TREE_RULES = ("tokenwise", "hsd")
CHAIN_RULES = ("tokenwise", "blockwise", "hsd")


def law_by_node(rule: str, tree: DraftTree, probs: torch.Tensor) -> dict[int, torch.Tensor]:
    """For each node where the path can end, the probability of that times the law of the next token."""
    plan, law = RULES[rule].plan(tree, probs), {}
    for node, chance in endings(plan):
        weights = plan.remaining(node).double()
        law[node] = law.get(node, 0.0) + chance * weights / weights.sum()
    return law


@settings(max_examples=150)
@given(seed=st.integers(0, 2**31 - 1), nodes=st.integers(1, 14), vocabulary=st.integers(2, 6))
@pytest.mark.parametrize("rule", TREE_RULES)
def test_batched_rules_are_the_plain_recursion(rule: str, seed: int, nodes: int, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tree, probs = random_tree(generator, nodes, vocabulary), random_probs(generator, nodes, vocabulary)
    law = law_by_node(rule, tree, probs)
    expected: dict[int, torch.Tensor] = {}
    for node, chance, following in oracle.outcomes(tree, probs, joint=rule == "hsd"):
        expected[node] = expected.get(node, 0.0) + chance * following
    zero = torch.zeros(vocabulary, dtype=torch.float64)
    for node in law.keys() | expected.keys():
        torch.testing.assert_close(law.get(node, zero), expected.get(node, zero), rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31 - 1), length=st.integers(1, 6))
def test_blockwise_is_hsd_on_chains(seed: int, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    laws = [random_law(generator, 4) for _ in range(length)]
    tree = chain_tree([int(torch.multinomial(law, 1, generator=generator)) for law in laws], laws)
    probs = random_probs(generator, length + 1, 4)
    ours, theirs = law_by_node("hsd", tree, probs), law_by_node("blockwise", tree, probs)
    zero = torch.zeros(4, dtype=torch.float64)
    for node in ours.keys() | theirs.keys():
        torch.testing.assert_close(ours.get(node, zero), theirs.get(node, zero), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", TREE_RULES)
@pytest.mark.parametrize("seed", range(6))
def test_verdicts_are_drawn_from_the_plan(rule: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tree, probs = random_tree(generator, 8, 5), random_probs(generator, 8, 5)
    plan = RULES[rule].plan(tree, probs)
    law = outcomes(tree, plan)
    # There is no chance in a plan, so one serves for all draws.
    drawing = replace(RULES[rule], plan=lambda *_: plan)
    draws, counts, accepted = 3000, dict.fromkeys(law, 0), 0
    for _ in range(draws):
        verdict = drawing.verify(tree, probs, generator)
        counts[tuple(tree.tokens[list(verdict.path[1:])].tolist()), int(verdict.next_token)] += 1
        accepted += verdict.accept_length
    statistic = sum((counts[key] - draws * p) ** 2 / (draws * p) for key, p in law.items())
    # Mean len(law) - 1, variance twice that or a little more: six standard deviations over a dozen fixed seeds.
    assert statistic < len(law) + 6 * (2 * len(law) + 1) ** 0.5
    expected = RULES[rule].expected_length(tree, probs)
    assert accepted / draws == pytest.approx(expected, abs=6 * tree.draft_length / draws**0.5)


@pytest.mark.parametrize("rule", TREE_RULES)
@pytest.mark.parametrize("seed", range(20))
def test_deterministic_trees_accept_the_same_under_any_rule(rule: str, seed: int) -> None:
    """The sum over the nodes of the target's probability of the path to them (docs/hsd.md)."""
    generator = torch.Generator().manual_seed(seed)
    tree, probs = random_tree(generator, 9, 5, sampled=0.0), random_probs(generator, 9, 5)
    reach, seen = [1.0], set()
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        if node:
            again = (parent, token) in seen
            seen.add((parent, token))
            reach.append(0.0 if again else reach[parent] * float(probs[parent, token]))
    assert RULES[rule].expected_length(tree, probs) == pytest.approx(math.fsum(reach[1:]), abs=1e-12)


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_equal_laws_accept_everything(rule: str) -> None:
    """p = q exactly leaves a residual of mass 0 / 0 nowhere: the chain is accepted, and the target draws behind it."""
    generator = torch.Generator().manual_seed(0)
    laws = [random_law(generator, 5) for _ in range(4)]
    tree = chain_tree([int(torch.multinomial(law, 1, generator=generator)) for law in laws], laws)
    probs = torch.stack([*laws, random_law(generator, 5)])
    assert RULES[rule].expected_length(tree, probs) == pytest.approx(4.0, abs=1e-12)
    for _ in range(50):
        verdict = RULES[rule].verify(tree, probs, generator)
        assert verdict.path == (0, 1, 2, 3, 4)
        assert probs[-1, verdict.next_token] > 0


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_a_token_that_the_target_cannot_say_is_never_accepted(rule: str) -> None:
    q = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    p = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)
    tree = chain_tree([0, 1], [q, q])
    law = outcomes(tree, RULES[rule].plan(tree, torch.stack([p, p, p])))
    assert all(path == () for path, _ in law)
    assert all(token in (1, 2) for _, token in law)


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_certain_laws(rule: str) -> None:
    """One-token supports: the drafted token holds all mass on both sides, or only on the draft's."""
    sure, other = torch.eye(3, dtype=torch.float64)[0], torch.eye(3, dtype=torch.float64)[1]
    tree = chain_tree([0], [sure])
    assert outcomes(tree, RULES[rule].plan(tree, torch.stack([sure, other]))) == {((0,), 1): 1.0}
    assert outcomes(tree, RULES[rule].plan(tree, torch.stack([other, sure]))) == {((), 1): 1.0}


@pytest.mark.parametrize("rule", [*CHAIN_RULES, "greedy", "naive_hsd", "hsd_published"])
def test_a_root_alone_is_a_step_of_the_target(rule: str) -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        law = outcomes(root_only(7), RULES[rule].plan(root_only(7), probs))
    expected = {((), 1): 1.0} if rule == "greedy" else {((), token): p for token, p in enumerate(probs[0].tolist())}
    assert law == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", TREE_RULES)
def test_narrow_logits_stay_close_to_the_wide_law(rule: str, dtype: torch.dtype) -> None:
    """What follows a round, from float32 probabilities of narrow logits, -inf among them, and float32 laws."""
    generator = torch.Generator().manual_seed(1)
    tree = random_tree(generator, 10, 6)
    logits = (3 * torch.randn(10, 6, generator=generator)).to(dtype)
    logits[torch.rand(10, 6, generator=generator) < 0.2] = -torch.inf
    logits[:, 1] = 0.5
    probs = logits.float().softmax(-1)
    laws = replace(tree.laws, rows=tree.laws.rows.float())
    narrow = law_by_node(rule, replace(tree, laws=laws), probs)
    wide = law_by_node(rule, replace(tree, laws=replace(laws, rows=laws.rows.double())), probs.double())
    for node in narrow.keys() | wide.keys():
        torch.testing.assert_close(
            narrow.get(node, 0 * probs[0].double()), wide.get(node, 0 * probs[0].double()), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("rule", [*TREE_RULES, "greedy"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_named(rule: str, bad: float) -> None:
    tree = picked_tree([0, 1], [0, 0])
    logits = torch.tensor([[0.0, bad, 1.0], [0.0, 0.0, 0.0]])
    probs = logits if rule == "greedy" else logits.softmax(-1)
    with pytest.raises(ValueError, match="node 0 contain NaN or infinity"):
        RULES[rule].verify(tree, probs, torch.Generator())


def test_numbers_that_are_none_stay_with_their_node() -> None:
    """All masses come from one table of laws; a node that no walk visits may have any row."""
    generator = torch.Generator().manual_seed(3)
    tree = random_tree(generator, 12, 6, sampled=1.0)
    probs = torch.rand(len(tree), 6, generator=generator, dtype=torch.float64).softmax(-1)
    parents = [parent for parent, family in Families(tree, probs).of.items() if family.drawn_from]
    assert len(parents) > 2
    spoilt = probs.clone()
    spoilt[parents[0]] = torch.nan
    masses = []
    for each in (probs, spoilt):
        families = Families(tree, each)
        masses.append(families.masses([Behind(families.of[parent], 0.8, (0.5,)) for parent in parents[1:]]))
    assert masses[0] == masses[1]
    assert min(masses[0]) > 0


def test_rules_for_chains_refuse_branches() -> None:
    tree = picked_tree([0, 1, 2], [0, 0, 0])
    probs = torch.full((3, 3), 1 / 3)
    for rule in ("blockwise", "naive_hsd"):
        with pytest.raises(ValueError, match="branches"):
            RULES[rule].verify(tree, probs)


def test_the_published_rule_says_that_it_is_lossy() -> None:
    from eagle.verification import hsd_published

    hsd_published._warn.cache_clear()
    tree, probs = picked_tree([0, 1], [0, 0]), torch.full((2, 3), 1 / 3)
    with pytest.warns(UserWarning, match="lossy"):
        RULES["hsd_published"].verify(tree, probs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RULES["hsd_published"].verify(tree, probs)


def test_the_published_rule_refuses_what_was_not_published() -> None:
    tree = random_tree(torch.Generator().manual_seed(5), 8, 4, sampled=0.5)
    with pytest.raises(ValueError, match="a chain, a deterministic tree or sampled paths"):
        RULES["hsd_published"].verify(tree, torch.full((8, 4), 0.25))


def test_greedy_follows_the_largest_entries() -> None:
    tree = picked_tree([0, 1, 2, 3], [0, 0, 0, 2])
    logits = torch.tensor([[0.0, 1, 5, 2], [0, 0, 0, 9], [1, 2, 3, 4], [7, 0, 0, 0]])
    verdict = RULES["greedy"].verify(tree, logits)
    assert verdict.path == (0, 2, 3)
    assert verdict.accept_length == 2
    assert int(verdict.next_token) == 0
    assert RULES["greedy"].expected_length(tree, logits) == 2


@pytest.fixture(params=["at once", "in blocks"])
def way_to_draw(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, whatever the length of rows."""
    monkeypatch.setattr("eagle.tree.drawing.AT_ONCE", 1 << 30 if request.param == "at once" else 0)


@pytest.mark.usefixtures("way_to_draw")
@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53])
def test_draw_never_returns_an_impossible_token(uniform: float) -> None:
    weights = torch.tensor([0.0, 0.2, 0.0, 0.1, 0.0])
    assert weights[draw(weights, uniform)] > 0
    for dtype in (torch.float32, torch.float64):
        rows = torch.stack([weights, weights.flip(0), 1e-30 * weights]).to(dtype)
        drawn = draw_rows(rows, torch.full((3,), uniform, dtype=torch.float64))
        assert (rows.gather(1, drawn[:, None]) > 0).all()
    assert draw_rows(torch.zeros(1, 4), torch.tensor([uniform], dtype=torch.float64)).tolist() == [3]


@pytest.mark.usefixtures("way_to_draw")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 4, 63, 64, 65, 1000])
def test_rows_are_drawn_in_proportion_to_their_weights(width: int, dtype: torch.dtype) -> None:
    weights = torch.randint(0, 4, (3, width), generator=torch.Generator().manual_seed(width)).to(dtype)
    weights[:, 3 * width // 4 :] *= weights.new_tensor([[1.0], [0.0], [1.0]])
    weights[2, : width // 2] = 0.0
    weights[:, 0] += 1.0
    for row in weights:
        total = int(row.sum())
        # With whole numbers as weights, each of them is hit by as many of these points.
        points = (torch.arange(total, dtype=torch.float64) + 0.5) / total
        drawn = draw_rows(row.expand(total, -1), points)
        assert torch.bincount(drawn, minlength=width).tolist() == row.tolist()
        assert [int(draw(row, float(point))) for point in points[:50]] == drawn[:50].tolist()


@pytest.mark.usefixtures("way_to_draw")
def test_draws_from_narrow_laws_follow_them_to_the_last_digits() -> None:
    law = (2 * torch.randn(1, 2048, generator=torch.Generator().manual_seed(0))).softmax(-1)
    # For each column the least point that draws it or a later one, by bisection: what is drawn grows with the point.
    low, high = torch.zeros(2, 2048, dtype=torch.float64)
    high += 1.0
    for _ in range(50):
        middle = (low + high) / 2
        reached = draw_rows(law.expand(2048, -1), middle) >= torch.arange(2048)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    drawn = torch.cat([high, high.new_ones(1)]).diff()
    assert (drawn - law[0].double() / law.double().sum()).abs().sum() / 2 < 1e-6
