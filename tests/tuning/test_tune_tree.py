"""Measuring acceptance on the same contexts, and searching the fastest trees with it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import acceptance as benchmark
from eagle.decoding.method import Method
from eagle.decoding.stored_trees import DEFAULT_TREE, StoredTrees, form_of, store
from eagle.drafters.sorted.drafter import SortedDrafter
from eagle.drafters.sorted.exits import SortedDraft
from eagle.errors import InputError
from eagle.evaluation.answering.arguments import answering_parser
from eagle.model import tune_tree
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, load_with_trees
from eagle.target.text import Text
from eagle.tree.chance import chance
from eagle.tree.shape import DETERMINISTIC, HYBRID, Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.tuning.acceptance import Candidate, expected_lengths, union
from eagle.verification import RULES
from tests.tiny import make_chat_pair, make_sorted_draft


def test_expected_lengths_of_sizes_and_rules(llama: EaModel) -> None:
    """In a few contexts: more nodes are never worse, and joint verification gains on hybrid trees only."""
    shape = TreeShape(12, 2, 3)
    candidates = [
        Candidate(llama.drafter, shape, (RULES["tokenwise"], RULES["hsd"]), (4, 12)),
        Candidate(
            llama.drafter, TreeShape(12, 2, 3, Sampling(0.2, 0.5, 1)), (RULES["tokenwise"], RULES["hsd"]), (4, 12), 20
        ),
    ]
    contexts = []
    for seed in range(6):
        prompt = torch.randint(8, (1, 6), generator=torch.Generator().manual_seed(seed))
        contexts += list(
            expected_lengths(
                llama.target,
                prompt,
                candidates,
                Warper(1.0),
                contexts=5,
                every=3,
                stop_ids=frozenset(),
                generator=torch.Generator().manual_seed(seed),
            )
        )
    assert len(contexts) == 30
    for deterministic, hybrid in contexts:
        tokenwise, joint = deterministic.lengths
        # docs/hsd.md: on a deterministic tree no rule gains.
        assert tokenwise == pytest.approx(joint, abs=1e-9)
        assert tokenwise[0] <= tokenwise[1]
        assert all(0 <= length <= 3 for lengths in hybrid.lengths for length in lengths)
    joint, tokenwise = (sum(hybrid.lengths[rule][1] for _, hybrid in contexts) for rule in (1, 0))
    assert joint > tokenwise


def test_at_temperature_0_lengths_are_those_of_generations(llama: EaModel) -> None:
    shape = TreeShape(8, 2, 3)
    prompt = torch.tensor([[1, 5, 2, 7, 3]])
    candidate = Candidate(llama.drafter, shape, (RULES["tokenwise"], RULES["hsd"]), (8,))
    _, _, _, info = llama.eagenerate(prompt, tree=shape, max_new_tokens=40, log=True)
    # The last round may have had no room.
    accepted = info["accept_length"][:-1]
    for every in (1, 3):
        measured = expected_lengths(
            llama.target,
            prompt,
            [candidate],
            Warper(0.0),
            contexts=-(-len(accepted) // every),
            every=every,
            stop_ids=frozenset(),
            generator=torch.Generator().manual_seed(0),
        )
        assert [context.lengths for (context,) in measured] == [[[length], [length]] for length in accepted[::every]]
    assert len(set(accepted)) > 1


@pytest.mark.parametrize("place", [0, 1, 5])
def test_contexts_end_with_the_text(llama: EaModel, place: int) -> None:
    prompt, shape = torch.tensor([[1, 5, 2, 7, 3]]), TreeShape(8, 2, 3)
    greedy = llama.naivegenerate(prompt, max_new_tokens=40)[0, 5:].tolist()
    stop = greedy[place]
    written = greedy[: greedy.index(stop) + 1]
    _, _, _, info = llama.eagenerate(prompt, tree=shape, max_new_tokens=40, log=True)
    begins = [sum(length + 1 for length in info["accept_length"][:rounds]) + 1 for rounds in range(40)]
    for every in (1, 2):
        found = expected_lengths(
            llama.target,
            prompt,
            [Candidate(llama.drafter, shape, (RULES["tokenwise"],), (8,))],
            Warper(0.0),
            contexts=20,
            every=every,
            stop_ids=frozenset({stop}),
            generator=torch.Generator().manual_seed(0),
        )
        # A round begins behind the token that the one before it drew, unless that or one before it ends the text.
        assert len(list(found)) == sum(begin < len(written) for begin in begins[::every])


def test_a_size_writes_the_rounds_of_that_size(llama: EaModel) -> None:
    prompt = torch.tensor([[1, 5, 2, 7, 3]])
    lengths = {}
    for sizes in ((3,), (12,), (3, 12)):
        candidate = Candidate(llama.drafter, TreeShape(12, 3, 3), (RULES["tokenwise"],), sizes)
        lengths[sizes] = [
            tuple(context.lengths[0])
            for (context,) in expected_lengths(
                llama.target, prompt, [candidate], Warper(0.0), 12, 1, frozenset(), torch.Generator().manual_seed(0)
            )
        ]
    small, large, both = lengths.values()
    assert [length for (length,) in small] != [length for (length,) in large][: len(small)]
    # Neither the small nor the large trees alone write this text.
    assert [pair[0] for pair in both] != [length for (length,) in small]
    assert [pair[1] for pair in both] != [length for (length,) in large]


def test_searches_try_trees_that_end_by_confidence() -> None:
    found = tune_tree.shapes(DETERMINISTIC, 12, 3, 30, random.Random(0))  # noqa: S311
    assert {shape.least_expanded for shape in found} == set(tune_tree.LEASTS_EXPANDED)
    assert {shape.least for shape in found} == set(tune_tree.LEASTS_OF_A_HEAD)


def test_drafts_that_few_contexts_need_count_and_stalls_do_not() -> None:
    candidate = Candidate(None, TreeShape(4, 1, 2), (RULES["tokenwise"],), (4,))
    usual, deep, stall = 1.0, 6.0, 600.0
    trial = tune_tree.Trial(candidate, [[1.0]] * 100, [usual] * 69 + [deep] * 30 + [stall], [4.0] * 100)
    (speed,) = trial.speeds({4: 0.0}).values()
    assert 2.0 / speed == pytest.approx((69 * usual + 30 * deep) / 99, rel=0.1)


def test_trees_scored_as_one_are_scored_as_before(llama: EaModel) -> None:
    """Each tree's rows of the union are what the tree alone would be told."""
    prompt = torch.randint(8, (1, 6), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    shape = TreeShape(9, 2, 3, Sampling(0.2, 0.5, 2))
    target, cache = llama.target, llama.target.new_cache(60)
    with torch.inference_mode():
        drafting = llama.drafter.begin(Text(prompt, Warper(1.0), 20), [*prompt[0].tolist(), 3], shape)
        drafting.read(target.prefill(prompt, cache))
        trees = [drafting.draft(shape, 3, chance(shape, Warper(1.0), generator)) for _ in range(5)]
        whole, places = union(trees)
        assert max(map(len, trees)) < len(whole) < sum(map(len, trees))
        together = target.score(whole, cache).logits
        for tree, place in zip(trees, places, strict=True):
            cache.keep(())
            torch.testing.assert_close(target.score(tree, cache).logits, together[place])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_chat_pair(tmp_path_factory.mktemp("pair"))


def arguments(pair: tuple[Path, Path], prompts: Path) -> list[str]:
    few = ["--shapes", "3", "--contexts", "4", "--largest", "8", "--deepest", "2"]
    paths = ["--base-model-path", str(pair[0]), "--ea-model-path", str(pair[1]), "--prompts", str(prompts)]
    return [*paths, "--device", "cpu", *few]


def test_the_search_stores_what_the_programs_use(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {number}"}) + "\n" for number in range(40)))
    file = pair[1] / "tree.json"
    file.unlink(missing_ok=True)
    other = TreeShape(60, 7, 10)
    store(pair[1], "cuda", {DETERMINISTIC: {1.0: other}})
    assert tune_tree.main([*arguments(pair, prompts), "--temperature", "1.0", "0.0", "--write"]) == 0
    assert capsys.readouterr().out.count("tokens/s expected") == 3
    stored = StoredTrees.read(pair[1], "cpu")
    assert {kind: sorted(found) for kind, found in stored.found.items()} == {DETERMINISTIC: [0.0, 1.0], HYBRID: [1.0]}
    for kind in (DETERMINISTIC, HYBRID):
        shape = stored.at(1.0, kind)
        assert 3 <= shape.total_token <= 8
        assert (shape.sampling is not None) == (kind == HYBRID)
        choice = ModelChoice(base_model_path=str(pair[0]), ea_model_path=str(pair[1]), device="cpu", kind=kind)
        assert choice.shape("cpu") == shape
    assert StoredTrees.read(pair[1], "cuda").at(0.3, DETERMINISTIC) == other
    assert StoredTrees.read(pair[1], "mps").at(1.0, HYBRID) == DEFAULT_TREE


@pytest.mark.parametrize("drafter", ["lookup", "suffix", "recycling", "eagle3+lookup", "eagle3+suffix"])
def test_the_search_prints_what_asks_for_the_trees_of_another_drafter(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], drafter: str
) -> None:
    (pair[1] / "tree.json").unlink(missing_ok=True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {number}"}) + "\n" for number in range(60)))
    search = [*arguments(pair, prompts), "--drafter", drafter, "--temperature", "0.0", "--deepest", "4"]
    assert tune_tree.main(search) == 0
    said = capsys.readouterr().out.splitlines()
    found = answering_parser("").parse_args(said[-1].split())
    choice = ModelChoice(
        base_model_path=str(pair[0]), ea_model_path=str(pair[1]), device="cpu", drafter=drafter, temperature=0.0
    )
    bounds = {name: getattr(found, name) for name in ("total_token", "depth", "top_k", "least")}
    assert f"{replace(choice, **bounds).shape('cpu')}, " in said[-2]
    assert tune_tree.main([*search, "--write"]) == 2
    assert f"those of {drafter} are printed as arguments" in capsys.readouterr().err


def test_the_search_stores_the_exits_of_a_sorted_draft(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = make_sorted_draft(pair[0], tmp_path / "draft")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {number}"}) + "\n" for number in range(40)))
    sorted_draft = ["--drafter", "sorted", "--sorted-model-path", str(draft)]
    search = [*arguments(pair, prompts), *sorted_draft, "--temperature", "1.0", "0.0"]
    assert tune_tree.main([*search, "--write"]) == 0
    said = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  exits:")]
    stored = StoredTrees.read(draft, "cpu")
    exits = [stored.thresholds[kind][at] for kind, at in ((DETERMINISTIC, 1.0), (HYBRID, 1.0), (DETERMINISTIC, 0.0))]
    assert [tuple(map(float, line)) for line in said] == exits
    # The programs draft with both.
    choice = ModelChoice(
        base_model_path=str(pair[0]), sorted_draft=SortedDraft(str(draft)), device="cpu", drafter="sorted"
    )
    model, trees = load_with_trees([replace(choice, kind=kind, temperature=1.0) for kind in (DETERMINISTIC, HYBRID)])
    assert trees == [stored.at(1.0, kind) for kind in (DETERMINISTIC, HYBRID)]
    drafter = model.offers["sorted"].drafter
    assert isinstance(drafter, SortedDrafter)
    # Of the exits it has those that a node may leave at.
    *early, _ = (layers - 1 for layers in drafter.model.exits)
    for kind, at in ((DETERMINISTIC, 1.0), (HYBRID, 1.0), (DETERMINISTIC, 0.0)):
        expected = [stored.thresholds[kind][at][number] for number in early]
        assert drafter.exits.at(at, kind).settled["thresholds"] == expected
    paths = True, str(pair[0])
    chosen = EaModel.from_pretrained(*paths, sorted_draft=SortedDraft(str(draft)), device_map="cpu")
    assert chosen.shape_for(Method.named(hsd=True, drafter="sorted"), 1.0) == stored.at(1.0, HYBRID)
    # What is asked for counts.
    for given, settled in (
        (SortedDraft(str(draft), thresholds=(0.3, 0.4)), [0.3, 0.4]),
        (SortedDraft(str(draft), 1), None),
    ):
        drafter = EaModel.from_pretrained(*paths, sorted_draft=given, device_map="cpu").offers["sorted"].drafter
        assert drafter.settled.get("thresholds") == settled
        assert "calibrated" not in drafter.settled


def test_times_of_sizes_between_measured_ones_lie_on_a_line() -> None:
    measured = {3: 1.0, 5: 3.0, 9: 4.0}
    assert [tune_tree.between(measured, size) for size in (1, 3, 4, 5, 8, 9, 20)] == [1, 1, 2, 3, 3.75, 4, 4]


def test_the_tree_found_at_the_nearest_temperature_is_used(pair: tuple[Path, Path]) -> None:
    (pair[1] / "tree.json").unlink(missing_ok=True)
    large, small, greedy = (TreeShape(size, 2, 3) for size in (9, 6, 4))
    store(pair[1], "cpu", {DETERMINISTIC: {0.0: greedy, 1.0: small}})
    store(pair[1], "cpu", {DETERMINISTIC: {0.5: small, 1.0: large}})
    found = {
        temperature: ModelChoice(
            base_model_path=str(pair[0]), ea_model_path=str(pair[1]), temperature=temperature
        ).shape("cpu")
        for temperature in (0.0, 0.2, 0.3, 0.7, 0.8, 1.5)
    }
    assert found == {0.0: greedy, 0.2: greedy, 0.3: small, 0.7: small, 0.8: large, 1.5: large}


@pytest.mark.parametrize(
    "form", [{"dtype": "float32"}, {"dtype": "float32", "quantize": "int8"}, {"dtype": "bfloat16"}], ids=str
)
def test_what_a_node_costs_less_in_has_its_own_trees_where_there_are_some(
    pair: tuple[Path, Path], form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair[1] / "tree.json").unlink(missing_ok=True)
    monkeypatch.setattr("eagle.decoding.stored_trees.bfloat16_is_fast", lambda: True)
    small, large, mixed = TreeShape(4, 0, 3), TreeShape(12, 2, 3), TreeShape(6, 1, 2, Sampling(0.1, 0.5, 1))
    store(pair[1], "cpu", {DETERMINISTIC: {1.0: small}, HYBRID: {1.0: mixed}})
    store(pair[1], "cpu int8", {DETERMINISTIC: {0.0: large, 1.0: large}})
    store(pair[1], "cpu bfloat16", {DETERMINISTIC: {0.0: large}})
    choice = ModelChoice(base_model_path=str(pair[0]), ea_model_path=str(pair[1]), device="cpu", **form)
    model, trees = load_with_trees([replace(choice, kind=kind) for kind in (DETERMINISTIC, HYBRID)])
    expected = small if form == {"dtype": "float32"} else large
    assert trees == [expected, mixed]
    program = EaModel.from_pretrained(
        True, *map(str, pair), dtype=getattr(torch, form["dtype"]), quantize=form.get("quantize"), device_map="cpu"
    )
    assert program.shape_for(Method.named(hsd=False), 1.0) == expected
    monkeypatch.setattr("eagle.decoding.stored_trees.bfloat16_is_fast", lambda: False)
    assert form_of(model.target) == ("cpu int8" if "quantize" in form else "cpu")


def test_a_size_that_is_given_is_not_cut_by_what_the_stored_tree_leaves_out(pair: tuple[Path, Path]) -> None:
    (pair[1] / "tree.json").unlink(missing_ok=True)
    stored = TreeShape(8, 2, 3, least=0.1, least_expanded=0.3)
    store(pair[1], "cpu", {DETERMINISTIC: {1.0: stored}})
    choice = ModelChoice(base_model_path=str(pair[0]), ea_model_path=str(pair[1]))
    assert choice.shape("cpu") == stored
    assert replace(choice, top_k=5).shape("cpu") == TreeShape(8, 2, 5)
    assert replace(choice, total_token=20, least_expanded=0.2).shape("cpu") == TreeShape(20, 2, 3, least_expanded=0.2)
    assert replace(choice, least=0.2).shape("cpu") == replace(stored, least=0.2)
    model = EaModel.from_pretrained(True, *map(str, pair), least_expanded=0.2, device_map="cpu")
    assert model.shape_for(Method.named(hsd=False), 1.0) == replace(stored, least_expanded=0.2)


def test_a_model_without_bounds_drafts_the_stored_trees(pair: tuple[Path, Path]) -> None:
    (pair[1] / "tree.json").unlink(missing_ok=True)
    paths = True, str(pair[0]), str(pair[1])
    model = EaModel.from_pretrained(*paths, device_map="cpu")
    assert model.shape_for(Method.named(hsd=False), 1.0) == TreeShape(60, 7, 10)
    hot, cold, mixed = TreeShape(5, 1, 2), TreeShape(4, 2, 1), TreeShape(6, 1, 2, Sampling(0.1, 0.5, 1))
    store(pair[1], "cpu", {DETERMINISTIC: {0.0: cold, 1.0: hot}, HYBRID: {1.0: mixed}})
    model = EaModel.from_pretrained(*paths, device_map="cpu")
    assert model.shape_for(Method.named(hsd=False), 0.9) == hot
    assert model.shape_for(Method.named(hsd=True), 0.9) == mixed
    for temperature, hsd, longest in ((1.0, False, 3), (1.0, True, 3), (0.0, False, 4), (0.0, True, 4)):
        drafted = [
            model.eagenerate(torch.tensor([[start, 1, 4]]), temperature, hsd=hsd, max_new_tokens=9, log=True)[3]
            for start in range(3, 7)
        ]
        assert max(length for info in drafted for length in info["draft_length"]) == longest
    given = EaModel.from_pretrained(*paths, depth=3, device_map="cpu")
    assert given.shape_for(Method.named(hsd=False), 1.0) == TreeShape(60, 3, 10)
    # A shape is taken as it is.
    chain = TreeShape(6, 4, 1, Sampling(None, 1.0, 1, draft_temperature=0.8))
    assert given.speculation(True, None, chain, None, 1.0).shape == chain


@pytest.mark.parametrize("wrong", [["--largest", "2"], ["--shapes", "0"], ["--contexts", "0"], ["--deepest", "-1"]])
def test_a_search_of_nothing_is_explained(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tune_tree.main(wrong) == 2
    assert f"{wrong[0]} must be" in capsys.readouterr().err


def test_a_folder_that_takes_no_trees_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        store(tmp_path / "none", "cpu", {DETERMINISTIC: {1.0: DEFAULT_TREE}})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Expecting property name"),
        ("[]", "get"),
        ('{"cpu": {"hybrid": [{"total_token": 8, "depth": 1, "top_k": 2}]}}', "'temperature' is missing"),
        (
            '{"cpu": {"hybrid": [{"temperature": 1.0, "total_token": 1, "depth": 1, "top_k": 2}]}}',
            "total_token must be",
        ),
        ('{"cpu": {"hybrid": {"total_token": 8}}}', "indices"),
    ],
)
def test_a_file_of_trees_that_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "tree.json").write_text(text)
    with pytest.raises(InputError, match="cannot understand") as caught:
        StoredTrees.read(tmp_path, "cpu")
    assert complaint in str(caught.value)


def test_hybrid_trees_are_searched_around_the_fastest_deterministic_one() -> None:
    source = random.Random(0)  # noqa: S311  # reproducible, not a secret
    found = tune_tree.shapes(HYBRID, 12, 3, 20, source, like=TreeShape(9, 2, 4))
    assert len(set(found)) == 20
    alike = [shape for shape in found if (shape.depth, shape.top_k) == (2, 4)]
    assert len(alike) >= 8


@pytest.mark.parametrize("text", ["", "{", '{"text": "x"}\n', "[1]\n"])
def test_bad_prompts_are_explained(
    pair: tuple[Path, Path], tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(text)
    assert tune_tree.main(arguments(pair, prompts)) == 2
    assert "prompts.jsonl" in capsys.readouterr().err


def test_too_few_prompts_are_explained(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Say 1"}) + "\n")
    assert tune_tree.main(arguments(pair, prompts)) == 2
    assert "too few prompts" in capsys.readouterr().err


def test_gains_are_relative_to_the_mean_and_clustered_by_prompt() -> None:
    base = benchmark.Column("deterministic", "tokenwise", 16, [[1.0, 1.0], [0.5], [0.5, 0.0]])
    better = benchmark.Column("hybrid", "hsd", 16, [[1.5, 1.5], [0.75], [0.75, 0.0]])
    assert base.mean == pytest.approx(0.6)
    assert benchmark.gain(base, better) == pytest.approx((50.0, 50.0, 50.0))
