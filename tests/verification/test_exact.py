"""Losslessness by enumeration: hand-made trees, and the drafter's own growth and pruning."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eagle.tree import growth as tree_module
from eagle.tree import selection
from eagle.tree.draft_tree import ONE_HOT, DraftTree
from eagle.tree.shape import Sampling, TreeShape
from eagle.verification import RULES, enumeration
from eagle.verification import exact as program
from eagle.verification.cases import Sketch, chain, grown, random_table, sketched, toy
from eagle.verification.enumeration import Case, upper_bound

ON_TREES = [RULES["tokenwise"], RULES["hsd"]]
ON_CHAINS = [RULES[name] for name in ("tokenwise", "blockwise", "naive_hsd", "hsd")]


def random_sketch(source: random.Random, depth: int, width: int) -> tuple[Sketch, ...]:
    kinds = ("top", "draw", "iid")
    children = source.randint(1, width) if depth else 0
    return tuple(
        Sketch(source.choice(kinds), random_sketch(source, source.randint(0, depth - 1), width))
        for _ in range(children)
    )


def draws_in(sketches: tuple[Sketch, ...]) -> int:
    return sum((sketch.kind != "top") + draws_in(sketch.children) for sketch in sketches)


@settings(max_examples=80)
@given(seed=st.integers(0, 2**31 - 1), vocabulary=st.integers(3, 4), sparse=st.booleans(), holes=st.booleans())
def test_lossless_on_random_trees(seed: int, vocabulary: int, sparse: bool, holes: bool) -> None:
    source = random.Random(seed)  # noqa: S311
    sketches = random_sketch(source, 3, 3)
    while draws_in(sketches) > 4:
        sketches = random_sketch(source, 3, 3)
    target = random_table(vocabulary, seed, zeros=0.35 * sparse)
    draft = random_table(vocabulary, seed + 1, zeros=0.35 * holes, like=target)
    support = sorted(source.sample(range(vocabulary), vocabulary - source.randint(0, 1)))
    case = sketched("random", sketches, target, draft, 4, support)
    for result in enumeration.exact(case, ON_TREES).values():
        assert result.distance < 1e-9


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), length=st.integers(1, 4), zeros=st.sampled_from([0.0, 0.3]))
@example(seed=108325, length=4, zeros=0.0)  # a token is drawn for a rounding error, and nothing is left behind it
def test_lossless_on_random_chains(seed: int, length: int, zeros: float) -> None:
    target = random_table(3, seed, zeros=zeros)
    draft = random_table(3, seed + 1, zeros=zeros, like=target)
    results = enumeration.exact(sketched("chain", chain("draw", length), target, draft, length + 1), ON_CHAINS)
    assert all(result.distance < 1e-9 for result in results.values())
    assert results["hsd"].expected_length == pytest.approx(results["blockwise"].expected_length, abs=1e-12)
    assert results["tokenwise"].expected_length <= results["hsd"].expected_length + 1e-12


def with_early(shape: TreeShape, seed: int) -> TreeShape:
    """The shape with some nodes decided on early: of keys around those that the threshold lets pass, or of any key."""
    source = random.Random(f"early {seed}")  # noqa: S311
    early, most = source.choice([0.3, 0.6, 1.0, 1.5]) * (shape.sampling.threshold or 0.2), source.choice([1, 2, 3, 4])
    return replace(shape, sampling=replace(shape.sampling, early=min(1.0, early), early_nodes=most))


def with_bounds(shape: TreeShape, seed: int) -> TreeShape:
    """The shape with nodes that are not expanded, and at times some that are left out."""
    source = random.Random(f"bounds {seed}")  # noqa: S311
    bound = shape.sampling.threshold or 0.2
    least = source.choice([None, None, 0.3 * bound, 0.8 * bound])
    return replace(shape, least=least, least_expanded=source.choice([0.1, 0.2, 0.3, 0.4, 0.5]))


def growth_case(seed: int, samples: int, early: bool = False, bounds: bool = False) -> Case:
    """Growth of a few nodes out of more candidates: what is pruned decides."""
    source = random.Random(seed)  # noqa: S311
    # The draws to enumerate are samples * (1 + top_k * depth), each of up to 3 or 4 outcomes.
    depth, top_k, vocabulary = source.choice(
        {1: [(2, 2, 3), (2, 1, 4)], 2: [(1, 2, 3), (2, 1, 3)], 3: [(1, 1, 4)]}[samples]
    )
    sampling = Sampling(
        threshold=source.choice([None, 0.1, 0.2, 0.3, 0.45]), rho=source.choice([0.2, 0.4, 0.7, 1.0]), samples=samples
    )
    shape = TreeShape(source.randint(3, 4 + samples), depth, top_k, sampling)
    if early:
        shape = with_early(shape, seed)
    if bounds:
        shape = with_bounds(shape, seed)
    target = random_table(vocabulary, seed, zeros=source.choice([0.0, 0.3]))
    draft = random_table(vocabulary, seed + 1, zeros=source.choice([0.0, 0.2]), like=target)
    return grown("grown", shape, target, draft, temperature=source.choice([1.0, 0.6]))


def growth_is_lossless(samples: int, seeds: range) -> None:
    gained = 0.0
    for seed in seeds:
        results = enumeration.exact(growth_case(1000 * samples + seed, samples), ON_TREES)
        assert max(result.distance for result in results.values()) < 1e-9
        gained += results["hsd"].expected_length - results["tokenwise"].expected_length
    assert gained > 0


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_lossless_through_growth_and_pruning(samples: int) -> None:
    growth_is_lossless(samples, range(16))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_lossless_through_growth_and_pruning_in_many_cases(samples: int) -> None:
    growth_is_lossless(samples, range(16, 40 if samples == 3 else 96))


def worst_of(samples: int, count: int) -> dict[str, float]:
    worst = {"tokenwise": 0.0, "hsd": 0.0}
    for seed in range(count):
        for name, result in enumeration.exact(growth_case(seed, samples), ON_TREES).items():
            worst[name] = max(worst[name], result.distance)
    return worst


def test_ranking_a_node_by_its_own_token_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    family = tree_module._family

    def by_own_token(logits, parent_keys, **how):
        grown_family = family(logits, parent_keys, **how)
        own = parent_keys[:, None] + logits.log_softmax(-1).gather(1, grown_family.columns)
        drawn = torch.arange(own.shape[1]) >= own.shape[1] - grown_family.samples
        drawn = drawn & (grown_family.keys > -torch.inf)
        return replace(grown_family, keys=torch.where(drawn, own, grown_family.keys))

    monkeypatch.setattr(tree_module, "_family", by_own_token)
    worst = worst_of(samples=1, count=25)
    assert worst["hsd"] > 0.01
    assert worst["tokenwise"] > 0.01


def crowding_case() -> Case:
    """The root's best token c is likely (0.7), its sample x is not (key 0.3 * 0.3). Below c a token y is drawn, and
    only y = 0 has a confident child: key 0.7 * 0.3 * 0.9, more than x has. With three drafted nodes, x is in the tree
    unless y = 0. That is allowed only if x is verified after c."""
    uniform, certain = [0.25] * 4, [0.91, 0.03, 0.03, 0.03]
    laws = {(): [0.7, 0.1, 0.1, 0.1], (0, 0): certain}

    def draft(path: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(laws.get(path, uniform), dtype=torch.float64)

    shape = TreeShape(4, 2, 1, Sampling(threshold=0.18, rho=0.3, samples=1))
    return grown("crowding", shape, random_table(4, seed=8, like=draft), draft)


def pruned_case(seed: int, early: bool = False, bounds: bool = False) -> Case:
    """As ``crowding_case``, with random numbers: one or two likely picks, below the last of which a token is drawn that
    decides how confident the draft is behind it, and hardly more nodes than it takes to get there."""
    source = random.Random(seed)  # noqa: S311
    depth, top_k, vocabulary, samples = source.choice([(2, 1, 3, 1), (2, 1, 4, 1), (2, 2, 3, 1), (2, 1, 3, 2)])
    two, likely = top_k == 2, source.uniform(0.5, 0.72)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def draft(path: tuple[int, ...]) -> torch.Tensor:
        confident = [0.96 if token == seed % vocabulary else 0.04 / (vocabulary - 1) for token in range(vocabulary)]
        weights = [source.uniform(0.8, 1.0) for _ in range(vocabulary)]
        if not path:
            weights = [likely, *[(1 - likely) / (vocabulary - 1)] * (vocabulary - 1)]
            if two:
                weights = [0.46, 0.34, *[0.2 / (vocabulary - 2)] * (vocabulary - 2)]
        elif (two and path == (0,)) or (len(path) == 2 and path[1] == seed % vocabulary):
            weights = confident
        return known.setdefault(path, torch.tensor(weights, dtype=torch.float64) / sum(weights))

    pick = (0,) if not two else (1,)
    threshold = float(draft(())[pick[0]] * draft(pick).max()) * 1.02
    sampling = Sampling(threshold, source.choice([0.45, 0.5, 0.6, 0.8]), samples)
    shape = TreeShape(source.randint(4, 4 + samples + 2 * two), depth, top_k, sampling)
    if early:
        shape = with_early(shape, seed)
    if bounds:
        shape = with_bounds(shape, seed)
    return grown("pruned", shape, random_table(vocabulary, seed, like=draft), draft)


def worst_pruned(seeds: range, early: bool = False) -> dict[str, float]:
    results = [enumeration.exact(pruned_case(seed, early), ON_TREES) for seed in seeds]
    return {rule.name: max(result[rule.name].distance for result in results) for rule in ON_TREES}


def test_lossless_where_what_is_drawn_decides_what_is_pruned() -> None:
    assert max(worst_pruned(range(40)).values()) < 1e-9


def test_lossless_with_early_decisions() -> None:
    counts = {1: 30, 2: 15, 3: 5}
    growths = [(1000 * samples + seed, samples) for samples, count in counts.items() for seed in range(count)]
    pruned = [(pruned_case(seed, early=True), pruned_case(seed)) for seed in range(60)]
    wider = [(growth_case(*one, early=True), growth_case(*one)) for one in growths]
    for case, _ in pruned + wider:
        assert max(result.distance for result in enumeration.exact(case, ON_TREES).values()) < 1e-9
    # The same laws and bounds without early decisions make other trees.
    for pairs in (pruned, wider):
        assert sum(trees_of(early) != trees_of(late) for early, late in pairs[:20]) > 3


def trees_of(case: Case) -> list[tuple[list[int], list[int]]]:
    return [(tree.tokens.tolist(), tree.parents.tolist()) for _, tree in case.trees]


def test_deciding_early_on_what_was_drawn_below_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level's nodes early only if the level below them has a confident one."""
    order = selection._order

    def hindsight(keys, level_of, sampling):
        last = level_of(len(keys) - 1)
        confident = max(key for place, key in enumerate(keys) if level_of(place) == last) > math.log(sampling.early)
        return order(keys, level_of, sampling if confident else replace(sampling, early=None))

    monkeypatch.setattr(selection, "_order", hindsight)
    assert max(worst_pruned(range(60), early=True).values()) > 0.003


def test_testing_every_sample_first_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drawn below their elder siblings before; token-wise verification does not notice."""
    ordered = DraftTree.children.func

    def samples_first(tree):
        drawn = [False] * len(tree) if tree.laws is None else (tree.laws.row_of != ONE_HOT).tolist()
        return [sorted(children, key=lambda child: not drawn[child]) for children in ordered(tree)]

    monkeypatch.setattr(DraftTree, "children", property(samples_first))
    worst = worst_pruned(range(40))
    assert worst["hsd"] > 0.01
    assert worst["tokenwise"] < 1e-9


def test_an_order_that_depends_on_what_came_later_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root's sample x (key 0.42 * 0.4) is decided on before anything is drawn below the root's pick c (0.58). If it
    is 1, a confident child of it takes the place of the sample below c. So whether x stands before c may not depend on
    whether in the end something was drawn below c; even token-wise verification notices."""
    laws = {(): [0.58, 0.14, 0.14, 0.14], (0,): [0.4, 0.2, 0.2, 0.2], (1,): [0.94, 0.02, 0.02, 0.02]}

    def draft(path: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(laws.get(path, [0.25] * 4), dtype=torch.float64)

    case = grown("late", TreeShape(5, 1, 2, Sampling(0.145, 0.4, 1)), random_table(4, seed=2, like=draft), draft)
    assert all(result.distance < 1e-9 for result in enumeration.exact(case, ON_TREES).values())

    def quiet_picks_last(tree):
        drawn, below = tree.laws.row_of != ONE_HOT, tree.ancestors().T
        children = [
            [node for node in range(1, len(tree)) if tree.parents[node] == parent] for parent in range(len(tree))
        ]
        return [sorted(family, key=lambda child: not bool((below[child] & drawn).any())) for family in children]

    monkeypatch.setattr(DraftTree, "children", property(quiet_picks_last))
    assert all(result.distance > 0.05 for result in enumeration.exact(case, ON_TREES).values())


def test_a_sample_stands_before_a_likelier_pick_and_that_is_optimal() -> None:
    """Of one grown level: p(S) + sum over x outside S of min(p(x), q(x) / (1 - q(S)))."""
    for seed in range(10):
        target, draft = random_table(4, seed), random_table(4, seed + 50)
        p, q = target(()), draft(())
        elsewhere = q.clone()
        elsewhere[q.argmax()] = 0.0
        optimum = p[q.argmax()] + torch.minimum(p, elsewhere / elsewhere.sum()).sum()
        case = grown("one level", TreeShape(3, 0, 1, Sampling(0.01, 0.1, 1)), target, draft)
        for result in enumeration.exact(case, ON_TREES).values():
            assert result.distance < 1e-12
            assert result.expected_length == pytest.approx(float(optimum), abs=1e-12)


def test_pruning_elder_siblings_for_what_is_drawn_below_younger_ones_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Testing the sample first without giving it the largest key; token-wise verification does not notice."""
    assert all(result.distance < 1e-9 for result in enumeration.exact(crowding_case(), ON_TREES).values())
    select = tree_module.select

    def sample_first(*args):
        tree = select(*args)
        row_of = torch.full((len(tree),), ONE_HOT) if tree.laws is None else tree.laws.row_of
        order = torch.tensor(sorted(range(len(tree)), key=lambda node: (tree.depths[node], row_of[node] == ONE_HOT)))
        place = torch.argsort(order)
        return replace(
            tree,
            tokens=tree.tokens[order],
            parents=place[tree.parents[order]],
            depths=tree.depths[order],
            keys=tree.keys[order],
            laws=tree.laws and replace(tree.laws, row_of=row_of[order], columns=tree.laws.columns[order]),
        )

    monkeypatch.setattr(tree_module, "select", sample_first)
    results = enumeration.exact(crowding_case(), ON_TREES)
    assert results["hsd"].distance > 0.003
    assert results["tokenwise"].distance < 1e-9


def test_the_toy_of_the_block_verification_paper() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        two = enumeration.exact(toy(2), list(RULES.values())[1:])
        ten = enumeration.exact(toy(10), [RULES["hsd_published"]])["hsd_published"]
    lengths = {name: result.expected_length for name, result in two.items()}
    assert lengths == pytest.approx(
        {"tokenwise": 10 / 9, "blockwise": 11 / 9, "hsd": 11 / 9, "naive_hsd": 12 / 9, "hsd_published": 12 / 9}
    )
    assert two["hsd_published"].distance == pytest.approx(1 / 9)
    assert ten.distance == pytest.approx(0.10, abs=0.01)


def test_the_published_rule_is_biased_on_trees_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = [
            enumeration.exact(case, [RULES["hsd_published"]])["hsd_published"].distance
            for case in program.cases()
            if case.name.startswith("deterministic, deep")
        ]
    assert max(distances) > 0.05


def test_no_rule_accepts_more_of_a_deterministic_tree_than_the_bound() -> None:
    for case in program.cases():
        bound = upper_bound(case)
        if bound is not None:
            for result in enumeration.exact(case, ON_TREES).values():
                assert result.expected_length == pytest.approx(bound, abs=1e-12)


def test_one_step_with_the_sample_first_is_optimal() -> None:
    """p(S) + sum over x outside S of min(p(x), q(x) / (1 - q(S))), docs/hsd.md."""
    for seed in range(10):
        target, draft = random_table(4, seed), random_table(4, seed + 50)
        p, q = target(()), draft(())
        elsewhere = q.clone()
        picked = int(q.argmax())
        elsewhere[picked] = 0.0
        optimum = float(p[picked]) + float(torch.minimum(p, elsewhere / elsewhere.sum())[elsewhere > 0].sum())

        def make(choose, draft=draft, picked=picked, elsewhere=elsewhere):
            from eagle.tree.draft_tree import DraftTree, Laws

            column = int(choose(elsewhere[None])[0])
            return DraftTree(
                torch.tensor([0, column, picked]),
                torch.zeros(3, dtype=torch.int64),
                torch.tensor([0, 1, 1]),
                torch.zeros(3),
                Laws(
                    (elsewhere / elsewhere.sum())[None],
                    torch.tensor([-1, 0, -1]),
                    torch.tensor([-1, column, picked]),
                    torch.arange(4),
                ),
            )

        results = enumeration.exact(Case("one step", target, draft, make, 2), ON_TREES)
        for result in results.values():
            assert result.distance < 1e-12
            assert result.expected_length == pytest.approx(optimum, abs=1e-12)


@pytest.mark.slow
def test_every_lossless_rule_is_exact_in_every_case_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main() == 0
    printed = capsys.readouterr().out
    assert all(case.name in printed for case in program.cases())
    assert "1.2222" in printed


def test_a_rule_that_is_not_lossless_is_not_admitted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [case for case in program.cases() if case.name in ("toy, chain of 2", "hybrid", "deterministic")]
    monkeypatch.setattr(program, "cases", lambda: few)
    assert program.main() == 0
    # One that is for chains only is not shown by trees.
    monkeypatch.setattr(program, "cases", lambda: few[1:])
    assert program.main() == 1
    assert "A RULE THAT CLAIMS" in capsys.readouterr().out
    monkeypatch.setattr(program, "cases", lambda: few)
    monkeypatch.setitem(RULES, "tokenwise", replace(RULES["hsd_published"], name="tokenwise", lossless=True))
    assert program.main() == 1
