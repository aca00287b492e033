"""The law of whole rounds and of generations: exactly the target's, for every lossless rule and kind of tree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.speculation import speculation
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree import growth
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from eagle.verification.enumeration import text_law
from eagle.verification.families import Families
from eagle.verification.naive_hsd import Carried
from tests.decoding.rounds import (
    PROMPT,
    SAMPLING,
    generation_distance,
    round_distance,
    round_distances,
    target_table,
)
from tests.tiny import head_files, load_pair, make_base, make_draft_model, write_head, write_letters

# A new drafter is tested by adding a line.
DRAFTERS = ("eagle3", "draft")
ON_TREES = {
    "deterministic": ("tokenwise", "hsd"),
    "hybrid": ("tokenwise", "hsd"),
    "chain": ("tokenwise", "blockwise", "hsd"),
    "paths": ("tokenwise", "hsd"),
}


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("tree", ON_TREES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_round_has_exactly_the_target_law(
    drafters: EaModel, drafter: str, tree: str, sampling: tuple[float, float, int]
) -> None:
    if tree == "paths" and not sampling[2]:
        pytest.skip("every draw of several paths is enumerated: only where few tokens are possible")
    rules = [RULES[rule] for rule in ON_TREES[tree]]
    # A draft model has more tokens to draw than a head.
    for first in (2, 5) if drafter == "eagle3" else (5,):
        assert max(round_distances(drafters, tree, rules, sampling, first, drafter=drafter)) < 1e-9


@pytest.mark.parametrize("paths", [1, 3])
def test_a_round_of_other_numbers_of_paths_has_exactly_the_target_law(drafters: EaModel, paths: int) -> None:
    rules = [RULES["tokenwise"], RULES["hsd"]]
    for levels, possible in ((1, 3), (2, 2)):
        how = {"drafter": "draft", "paths": paths, "levels": levels}
        assert max(round_distances(drafters, "paths", rules, (1.0, 0.0, possible), 2, **how)) < 1e-9


@pytest.mark.parametrize("rule", ["tokenwise", "hsd"])
def test_that_test_sees_duplicates_that_are_left_out(
    drafters: EaModel, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """A path that draws what an elder one has drawn goes on below it, but its draw is forgotten."""
    draw_paths = growth.draw_paths

    def merged(*how: object) -> DraftTree:
        tree = draw_paths(*how)
        if tree.twins is None:
            return tree
        kept = tree.twins == torch.arange(len(tree))
        place = (kept.cumsum(0) - 1)[tree.twins]
        laws = replace(tree.laws, row_of=tree.laws.row_of[kept], columns=tree.laws.columns[kept])
        parents = place[tree.parents[kept]]
        return DraftTree(tree.tokens[kept], parents, tree.depths[kept], tree.keys[kept], laws)

    monkeypatch.setattr(growth, "draw_paths", merged)
    distances = [
        round_distance(drafters, "paths", RULES[rule], (1.0, 0.0, 3), first, drafter="draft") for first in (2, 5)
    ]
    assert max(distances) > 0.003


@pytest.fixture(scope="module")
def two_tokens(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    """A model of so few tokens that whole generations can be enumerated, with every drafter."""
    folder = tmp_path_factory.mktemp("two")
    base = write_letters(make_base("llama", folder / "base", vocab_size=2, num_hidden_layers=3), 2)
    head = write_head(folder / "head", *head_files(base, draft_vocab=2))
    draft = make_draft_model(folder / "draft", 2, layers=1, initializer_range=0.3)
    return load_pair(base, head, draft_model_path=str(draft))


# A token is picked where the head is sure of it or it was looked up.
HALF_PICKED = Sampling(threshold=0.6, rho=0.7, samples=1)
# The bounds of the trees, and how many tokens are followed.
GENERATIONS = {
    "draft/chain:naive_hsd": (TreeShape(3, 1, 1), 4),
    "draft/chain:hsd": (TreeShape(3, 1, 1), 3),
    "draft/paths:hsd": (TreeShape(3, 0, 1, paths=2), 3),
    "chain:tokenwise": (TreeShape(3, 1, 1), 3),
    "lookup/deterministic:hsd": (TreeShape(4, 1, 2, least=0.1), 3),
    "suffix/deterministic:hsd": (TreeShape(4, 1, 2, least=0.1), 3),
    "eagle3+lookup/hybrid:hsd": (TreeShape(3, 0, 1, HALF_PICKED), 4),
    "eagle3+suffix/hybrid:hsd": (TreeShape(3, 0, 1, HALF_PICKED), 4),
}


@pytest.mark.parametrize("method", GENERATIONS)
def test_generations_of_two_rounds_have_exactly_the_target_law(
    two_tokens: EaModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Through the whole loop, with everything that goes from one round to the next: caches, what the drafter learned,
    the modified target that ``naive_hsd`` carries on."""
    distance, rounds = generation_distance(two_tokens, method, *GENERATIONS[method], monkeypatch)
    assert distance < 1e-9
    assert rounds > 1.04


def test_that_test_sees_a_modified_target_that_is_not_carried_on(
    two_tokens: EaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eagle.decoding.decoding.carried", lambda *round_: Carried(1.0, 0))
    assert generation_distance(two_tokens, "draft/chain:naive_hsd", TreeShape(3, 1, 1), 3, monkeypatch)[0] > 0.003


@pytest.mark.filterwarnings("ignore:hsd_published")
def test_the_published_rule_is_lossy_on_several_paths(drafters: EaModel) -> None:
    distances = [
        round_distance(drafters, "paths", RULES["hsd_published"], (1.0, 0.0, 3), first, drafter="draft")
        for first in (2, 5)
    ]
    assert max(distances) > 0.003


@pytest.mark.parametrize("samples", [2, 3])
def test_a_round_with_more_samples_has_exactly_the_target_law(llama: EaModel, samples: int) -> None:
    rules = [RULES["tokenwise"], RULES["hsd"]]
    drafted_with = Sampling(threshold=0.5, rho=1.0, samples=samples, draft_temperature=0.8)
    # Of few possible tokens, so that there are few ways to draw some of them.
    for sampling, first in itertools.product(SAMPLING[4:], (2, 5)):
        assert max(round_distances(llama, "hybrid", rules, sampling, first, drafted_with)) < 1e-9


@pytest.mark.filterwarnings("ignore:hsd_published")
def test_that_test_rejects_the_published_rule(llama: EaModel) -> None:
    distances = [round_distance(llama, "chain", RULES["hsd_published"], s, f) for s in SAMPLING[:3] for f in (2, 5)]
    assert max(distances) > 0.01


def test_that_test_rejects_a_node_kept_for_its_own_token(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rank_by_own_token(monkeypatch)
    rules = [RULES["tokenwise"], RULES["hsd"]]
    distances = [round_distances(llama, "hybrid", rules, s, f) for s in SAMPLING[:3] for f in (2, 5)]
    assert all(max(of_rule) > 0.003 for of_rule in zip(*distances, strict=True))


def rank_by_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break growth: the key of a sampled node is what its own token is worth."""
    family = growth._family

    def by_own_token(logits, parent_keys, **how):
        grown = family(logits, parent_keys, **how)
        own = parent_keys[:, None] + logits.log_softmax(-1).gather(1, grown.columns)
        drawn = torch.arange(own.shape[1]) >= own.shape[1] - grown.samples
        return replace(grown, keys=torch.where(drawn & (grown.keys > -torch.inf), own, grown.keys))

    monkeypatch.setattr(growth, "_family", by_own_token)


def test_that_test_fails_when_the_residual_is_broken(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_rejected_tokens(monkeypatch)
    for tree in ("deterministic", "hybrid"):
        assert round_distance(llama, tree, RULES["tokenwise"], (1.0, 0.0, 0), 2) > 0.03


def keep_rejected_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break verification: draw the next token from the target's law, whatever was rejected."""
    monkeypatch.setattr(Families, "remaining", lambda self, node, r, reached: self.target_probs[node])


TEXTS = 200
"""As many texts show the broken residual below; what is exact above needs no sampling."""
Draws = Iterator[tuple[list[int], int]]
"""The new tokens of a text, at least 3, and how many draft tokens were accepted."""


def generated(model: EaModel, sampling: tuple[float, float, int], **method: object) -> Draws:
    """Texts of the public interface, each by itself."""
    temperature, top_p, top_k = sampling
    generator = torch.Generator().manual_seed(7)
    while True:
        ids, _, _, info = model.eagenerate(
            PROMPT, temperature, top_p, top_k, max_new_tokens=4, log=True, generator=generator, **method
        )
        yield ids[0, 5:].tolist(), sum(info["accept_length"])


def restarted(model: EaModel, sampling: tuple[float, float, int], method: str, prompt: torch.Tensor = PROMPT) -> Draws:
    """Texts of one decoding that begins behind the same prompt again and again, which is faster."""
    generator = torch.Generator().manual_seed(7)
    chosen = speculation(model.offers, Method.parse(method), sampling[0])
    decoding = Decoding(model.target, chosen, Text(prompt, Warper(*sampling), 100, generator=generator))
    while True:
        while decoding.new_tokens < 3:
            decoding.step()
        yield decoding.tokens[prompt.shape[1] :], sum(decoding.info["accept_length"])
        decoding.restart(generator)


def sampled_p_value(
    model: EaModel, sampling: tuple[float, float, int], draws: int, texts: Draws, prompt: torch.Tensor = PROMPT
) -> tuple[float, int]:
    """Chi-square of the first 3 tokens of real generations against exact probabilities, rare ones pooled; and how many
    draft tokens were accepted."""
    counts: dict[tuple[int, ...], int] = {}
    accepted = 0
    for new, of_text in itertools.islice(texts, draws):
        path = tuple(new[:3])
        counts[path] = counts.get(path, 0) + 1
        accepted += of_text
    statistic, pooled_p, pooled_count, cells = 0.0, 0.0, 0, 0
    expected = text_law(target_table(model, Warper(*sampling), prompt), {(): 1.0}, 3)
    if counts.keys() - expected.keys():
        return 0.0, accepted
    for path, p in expected.items():
        if p * draws < 5:
            pooled_p, pooled_count = pooled_p + p, pooled_count + counts.get(path, 0)
        else:
            statistic, cells = statistic + (counts.get(path, 0) - draws * p) ** 2 / (draws * p), cells + 1
    if pooled_p * draws >= 1:
        statistic, cells = statistic + (pooled_count - draws * pooled_p) ** 2 / (draws * pooled_p), cells + 1
    return float(chi2.sf(statistic, cells - 1)), accepted


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    """Half as deep, for many generations, and with every drafter."""
    folder = tmp_path_factory.mktemp("shallow")
    base = write_letters(make_base("llama", folder / "base", num_hidden_layers=3))
    head = write_head(folder / "head", *head_files(base))
    draft = make_draft_model(folder / "draft", layers=1, initializer_range=0.3)
    return load_pair(base, head, draft_model_path=str(draft), paths=3, depth=1)


@pytest.mark.parametrize("sampling", [(1.0, 0.0, 0), (0.7, 0.8, 3)])
@pytest.mark.parametrize("method", [{}, {"hsd": True}])
def test_generations_follow_the_target_law(shallow: EaModel, method: dict, sampling: tuple[float, float, int]) -> None:
    p_value, accepted = sampled_p_value(shallow, sampling, TEXTS // 2, generated(shallow, sampling, **method))
    assert p_value > 1e-3
    assert accepted > 50


SAMPLED = ["chain:hsd", "chain:blockwise", "paths:hsd"]
SAMPLED += [f"draft/{each}" for each in ("chain:tokenwise", "chain:naive_hsd", "chain:hsd", "hybrid:hsd")]
SAMPLED += ["draft/chain:blockwise", "draft/paths:tokenwise", "draft/paths:hsd", "draft/deterministic:tokenwise"]


@pytest.mark.parametrize("sampling", [(1.0, 0.0, 0), (0.7, 0.8, 3)])
@pytest.mark.parametrize("method", SAMPLED)
def test_texts_of_every_drafter_follow_the_target_law(
    shallow: EaModel, method: str, sampling: tuple[float, float, int]
) -> None:
    p_value, accepted = sampled_p_value(shallow, sampling, TEXTS, restarted(shallow, sampling, method))
    assert p_value > 1e-3
    assert accepted > 25


def test_sampling_shows_a_broken_residual(shallow: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_rejected_tokens(monkeypatch)
    sampling = (1.0, 0.0, 0)
    assert sampled_p_value(shallow, sampling, TEXTS, restarted(shallow, sampling, "eagle3"))[0] < 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:hsd_published")
def test_sampling_shows_the_published_rule(tmp_path: Path) -> None:
    """On a pair of four tokens where its bias is large; block verification of the same chains passes."""
    base = make_base("llama", tmp_path / "base", vocab_size=4, num_hidden_layers=3)
    head = write_head(tmp_path / "head", *head_files(base, draft_vocab=4, weight=0.25))
    model = load_pair(base, head, depth=1)
    prompt, sampling = torch.tensor([[3, 1, 0, 1, 2]]), (1.0, 0.0, 0)
    p_values = [
        sampled_p_value(model, sampling, draws, restarted(model, sampling, f"chain:{rule}", prompt), prompt)[0]
        for rule, draws in (("hsd_published", 600), ("blockwise", 300))
    ]
    assert p_values[0] < 1e-4
    assert p_values[1] > 1e-3
