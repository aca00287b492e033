"""The law of whole rounds and of generations: exactly the target's, for every lossless rule and kind of tree."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2

from eagle.model.ea_model import EaModel
from eagle.tree import growth as tree_module
from eagle.tree.shape import Sampling
from eagle.tree.warping import Warper
from eagle.verification import RULES
from eagle.verification.enumeration import text_law
from eagle.verification.siblings import Siblings
from tests.model.rounds import PROMPT, SAMPLING, round_distance, target_table
from tests.tiny import head_files, load_pair, make_base, write_head

PAIRS = [
    (tree, rule)
    for tree, rules in (
        ("deterministic", ("tokenwise", "hsd")),
        ("hybrid", ("tokenwise", "hsd")),
        ("chain", ("tokenwise", "blockwise", "hsd")),
    )
    for rule in rules
]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize(("tree", "rule"), PAIRS)
def test_a_round_has_exactly_the_target_law(
    llama: EaModel, tree: str, rule: str, sampling: tuple[float, float, int]
) -> None:
    for first in (2, 5):
        assert round_distance(llama, tree, RULES[rule], sampling, first) < 1e-9


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("rule", ["tokenwise", "hsd"])
def test_a_round_with_more_samples_has_exactly_the_target_law(llama: EaModel, rule: str, samples: int) -> None:
    drafted_with = Sampling(threshold=0.5, rho=1.0, samples=samples, draft_temperature=0.8)
    # Of few possible tokens, so that there are few ways to draw some of them.
    for sampling, first in itertools.product(SAMPLING[4:], (2, 5)):
        assert round_distance(llama, "hybrid", RULES[rule], sampling, first, drafted_with) < 1e-9


@pytest.mark.filterwarnings("ignore:hsd_published")
def test_that_test_rejects_the_published_rule(llama: EaModel) -> None:
    distances = [round_distance(llama, "chain", RULES["hsd_published"], s, f) for s in SAMPLING[:3] for f in (2, 5)]
    assert max(distances) > 0.01


@pytest.mark.parametrize("rule", ["tokenwise", "hsd"])
def test_that_test_rejects_a_node_kept_for_its_own_token(
    llama: EaModel, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    rank_by_own_token(monkeypatch)
    distances = [round_distance(llama, "hybrid", RULES[rule], s, f) for s in SAMPLING[:3] for f in (2, 5)]
    assert max(distances) > 0.003


def rank_by_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break growth: the key of a sampled node is what its own token is worth."""
    family = tree_module._family

    def by_own_token(logits, parent_keys, shape, chance):
        grown = family(logits, parent_keys, shape, chance)
        own = parent_keys[:, None] + logits.log_softmax(-1).gather(1, grown.tokens)
        drawn = torch.arange(own.shape[1]) >= own.shape[1] - grown.samples
        return replace(grown, keys=torch.where(drawn & (grown.keys > -torch.inf), own, grown.keys))

    monkeypatch.setattr(tree_module, "_family", by_own_token)


def test_that_test_fails_when_the_residual_is_broken(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_rejected_tokens(monkeypatch)
    for tree in ("deterministic", "hybrid"):
        assert round_distance(llama, tree, RULES["tokenwise"], (1.0, 0.0, 0), 2) > 0.03


def keep_rejected_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break verification: draw the next token from the target's law, whatever was rejected."""
    monkeypatch.setattr(Siblings, "remaining", lambda self, node, r, reached: self.target_probs[node])


def sampled_p_value(
    model: EaModel,
    sampling: tuple[float, float, int],
    draws: int,
    prompt: torch.Tensor = PROMPT,
    **method: object,
) -> tuple[float, int]:
    """Chi-square of the first 3 tokens of real generations against exact probabilities, rare ones pooled; and how many
    draft tokens were accepted."""
    temperature, top_p, top_k = sampling
    generator = torch.Generator().manual_seed(7)
    counts: dict[tuple[int, ...], int] = {}
    accepted = 0
    for _ in range(draws):
        ids, _, _, info = model.eagenerate(
            prompt,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=4,
            log=True,
            generator=generator,
            **method,
        )
        path = tuple(ids[0, 5:8].tolist())
        counts[path] = counts.get(path, 0) + 1
        accepted += sum(info["accept_length"])
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
    """Half as deep, for many generations."""
    folder = tmp_path_factory.mktemp("shallow")
    base = make_base("llama", folder / "base", num_hidden_layers=3)
    return load_pair(base, write_head(folder / "head", *head_files(base)))


@pytest.mark.parametrize("sampling", [(1.0, 0.0, 0), (0.7, 0.8, 3)])
@pytest.mark.parametrize(
    "method", [{}, {"hsd": True}, {"hsd": True, "tree": "chain"}, {"tree": "chain", "verifier": "blockwise"}]
)
def test_generations_follow_the_target_law(shallow: EaModel, method: dict, sampling: tuple[float, float, int]) -> None:
    p_value, accepted = sampled_p_value(shallow, sampling, draws=500, **method)
    assert p_value > 1e-3
    assert accepted > 100


def test_sampling_shows_a_broken_residual(shallow: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_rejected_tokens(monkeypatch)
    assert sampled_p_value(shallow, (1.0, 0.0, 0), draws=500)[0] < 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:hsd_published")
def test_sampling_shows_the_published_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pair of four tokens where its bias is large; block verification of the same chains passes."""
    base = make_base("llama", tmp_path / "base", seed=11, vocab_size=4)
    head = write_head(tmp_path / "head", *head_files(base, draft_vocab=4, seed=12, weight=0.25))
    model = load_pair(base, head)
    prompt = torch.tensor([[3, 1, 0, 1, 2]])
    chain = {"tree": "chain", "sampling": (1.0, 0.0, 0), "prompt": prompt}
    assert sampled_p_value(model, **chain, draws=2500, verifier="hsd_published")[0] < 1e-6
    assert sampled_p_value(model, **chain, draws=1000, verifier="blockwise")[0] > 1e-3
