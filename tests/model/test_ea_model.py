"""Whole generations: equal to autoregressive decoding at temperature 0, the target's law above, and where they end."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2

from eagle.model import tree as tree_module
from eagle.model.decoding import Decoding
from eagle.model.ea_model import EaModel
from eagle.model.method import Method
from eagle.model.sampling import Warper
from eagle.model.tree import Chance, DraftTree, Sampling, TreeShape
from eagle.verification import RULES, Plan, Rule
from eagle.verification.exact import Choose, Table, distance, every_draw, outcomes, text_law
from eagle.verification.exact import Path as Path_
from eagle.verification.siblings import Siblings
from tests.tiny import ARCHITECTURES, VOCAB, head_files, load_pair, make_base, make_pair, write_head

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
SAMPLING = [(0.7, 0.0, 0), (1.0, 0.0, 0), (1.5, 0.0, 0), (1.0, 0.8, 0), (1.0, 0.0, 3), (0.7, 0.8, 3)]


@pytest.mark.parametrize("layout", ["official", "speculators"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_autoregressive(architecture: str, layout: str, tmp_path: Path) -> None:
    # A wide tree over most of the vocabulary, so that an untrained head is accepted often.
    model = load_pair(*make_pair(tmp_path, architecture, layout, draft_vocab=VOCAB - 1), total_token=24, top_k=5)
    accepted = 0
    for start in range(4):
        prompt = (PROMPT + start) % VOCAB
        drafted, new_token, idx, info = model.eagenerate(prompt, max_new_tokens=40, log=True)
        plain, plain_new, plain_idx, plain_info = model.naivegenerate(prompt, max_new_tokens=40, log=True)
        assert drafted.tolist() == plain.tolist()
        stock = model.base_model.generate(
            prompt, do_sample=False, max_new_tokens=40, attention_mask=torch.ones_like(prompt)
        )
        assert drafted.tolist() == stock.tolist()
        assert new_token == plain_new == drafted.shape[1] - prompt.shape[1] == 40
        assert idx == len(info["accept_length"]) - 1 <= plain_idx == 38
        assert plain_info["accept_length"] == [0] * 39
        assert plain_info["draft_length"] == [1] * 39
        accepted += sum(info["accept_length"])
        assert sum(info["accept_length"]) + len(info["accept_length"]) + 1 >= 40
    # Commit and compaction ran: whole paths were accepted, not only roots.
    assert accepted > 10


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 0.0), (1.0, 0.0), (0.7, 0.9)])
def test_a_seed_means_the_same_text_on_every_device(
    device: str, temperature: float, top_p: float, llama: EaModel, llama_pair: tuple[Path, Path]
) -> None:
    there = load_pair(*llama_pair, device_map=device)
    for hsd in (False, True):
        texts = [
            model.eagenerate(
                PROMPT.to(model.device),
                temperature,
                top_p,
                max_new_tokens=30,
                hsd=hsd,
                generator=torch.Generator().manual_seed(7),
            ).tolist()
            for model in (llama, there)
        ]
        assert texts[0] == texts[1]


def target_table(model: EaModel, warper: Warper) -> Table:
    """What the stock model says after the prompt and a path of tokens, through the transformers warpers."""
    known: dict[Path_, torch.Tensor] = {}

    def law(path: Path_) -> torch.Tensor:
        if path not in known:
            with torch.inference_mode():
                known[path] = warper(model.base_model(torch.tensor([[*PROMPT[0].tolist(), *path]])).logits[:, -1])[0]
        return known[path]

    return law


ONE_SAMPLE = Sampling(threshold=0.15, rho=0.7, samples=1)


def round_distance(
    model: EaModel,
    tree: str,
    rule: Rule,
    sampling: tuple[float, float, int],
    first: int,
    drafted_with: Sampling = ONE_SAMPLE,
) -> float:
    """Total variation between the law of the three tokens behind the prompt and ``first``, begun by one real round,
    and the target's own; summed over every draw of the drafter and every fall of the rule's coins."""
    warper = Warper(*sampling)
    # Two levels, two expanded nodes, fewer nodes than candidates, so that pruning decides.
    shape = Method(tree, rule.name).shape(TreeShape(6, 1, 2, drafted_with))
    decoding = Decoding(
        model.target, (model.drafter, shape), PROMPT, warper, 200, frozenset(), None, rule=_forced(first)
    )
    committed = decoding.head_cache.committed
    with torch.inference_mode():
        features = model.target.prefill(PROMPT, model.target.new_cache(64)).features[-1:]

    def make(choose: Choose) -> DraftTree:
        decoding.head_cache.committed = committed - 1
        source = Chance(decoding.chance.law, choose) if decoding.chance else None
        following = torch.tensor([first])
        return model.drafter.draft(features, following, first, decoding.head_cache, decoding.shape, 2, source)

    begun: dict[Path_, float] = {}
    with torch.inference_mode():
        for weight, drafted in every_draw(make):
            probs = warper(model.target.score(drafted, decoding.cache).logits)
            decoding.cache.keep(())
            for (path, token), share in outcomes(drafted, rule.plan(drafted, probs)).items():
                begun[*path, token] = begun.get((*path, token), 0.0) + weight * share
    target = target_table(model, warper)

    def behind(path: Path_) -> torch.Tensor:
        return target((first, *path))

    return distance(text_law(behind, begun, 3), text_law(behind, {(): 1.0}, 3))


def _forced(token: int) -> Rule:
    """A rule that accepts nothing and lets this token follow."""

    class Forced(Plan):
        def walk(self, toss):
            return 0

        def remaining(self, node):
            return torch.nn.functional.one_hot(torch.tensor(token), self.target_probs.shape[-1])

    return Rule("forced", Forced, lossless=False)


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
    model: EaModel, sampling: tuple[float, float, int], draws: int, **method: object
) -> tuple[float, int]:
    """Chi-square of the first 3 tokens of real generations against exact probabilities, rare ones pooled; and how many
    draft tokens were accepted."""
    temperature, top_p, top_k = sampling
    generator = torch.Generator().manual_seed(7)
    counts: dict[tuple[int, ...], int] = {}
    accepted = 0
    for _ in range(draws):
        ids, _, _, info = model.eagenerate(
            PROMPT,
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
    expected = text_law(target_table(model, Warper(*sampling)), {(): 1.0}, 3)
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


@pytest.mark.parametrize("sampling", [(1.0, 0.0, 0), (0.7, 0.8, 3)])
@pytest.mark.parametrize(
    "method", [{}, {"hsd": True}, {"hsd": True, "tree": "chain"}, {"tree": "chain", "verifier": "blockwise"}]
)
def test_generations_follow_the_target_law(llama: EaModel, method: dict, sampling: tuple[float, float, int]) -> None:
    p_value, accepted = sampled_p_value(llama, sampling, draws=500, **method)
    assert p_value > 1e-3
    assert accepted > 100


def test_sampling_shows_a_broken_residual(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_rejected_tokens(monkeypatch)
    assert sampled_p_value(llama, (1.0, 0.0, 0), draws=500)[0] < 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:hsd_published")
def test_sampling_shows_the_published_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pair of four tokens where its bias is large; block verification of the same chains passes."""
    base = make_base("llama", tmp_path / "base", seed=11, vocab_size=4)
    head = write_head(tmp_path / "head", *head_files(base, draft_vocab=4, seed=12, weight=0.25))
    model = load_pair(base, head)
    monkeypatch.setitem(globals(), "PROMPT", torch.tensor([[3, 1, 0, 1, 2]]))
    chain = {"tree": "chain", "draws": 2500, "sampling": (1.0, 0.0, 0)}
    assert sampled_p_value(model, **chain, verifier="hsd_published")[0] < 1e-6
    assert sampled_p_value(model, **chain, verifier="blockwise")[0] > 1e-3


def test_rounds_draft_what_a_fresh_start_drafts(llama: EaModel) -> None:
    """The caches after commits and compactions hold what a prefill of the same tokens puts there."""
    drafting = (llama.drafter, llama.shape)
    decoding = Decoding(llama.target, drafting, PROMPT, Warper(1.0), 60, frozenset(), torch.Generator().manual_seed(3))
    while not decoding.finished:
        fresh = Decoding(
            llama.target,
            drafting,
            torch.tensor([decoding.tokens[:-1]]),
            Warper(1.0),
            60,
            frozenset(),
            None,
            rule=_forced(decoding.tokens[-1]),
        )
        assert fresh.tree.tokens.tolist() == decoding.tree.tokens.tolist()
        assert fresh.tree.parents.tolist() == decoding.tree.parents.tolist()
        torch.testing.assert_close(fresh.tree.keys, decoding.tree.keys)
        decoding.step()
    assert sum(decoding.info["accept_length"]) > 5


def test_a_long_prompt_is_drafted_from_in_pieces(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = torch.randint(VOCAB, (1, 50), generator=torch.Generator().manual_seed(0))
    trees = []
    for chunk in (2048, 7):
        monkeypatch.setattr("eagle.model.drafter.PREFILL_CHUNK", chunk)
        start = Decoding(llama.target, (llama.drafter, llama.shape), prompt, Warper(0.0), 60, frozenset(), None)
        trees.append(start.tree)
    assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
    torch.testing.assert_close(trees[0].keys, trees[1].keys)


def test_a_seed_decides_the_text(llama: EaModel) -> None:
    texts = [
        llama.eagenerate(
            PROMPT, temperature=1.0, max_new_tokens=30, generator=torch.Generator().manual_seed(seed)
        ).tolist()
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_output_ends_at_the_first_stop_token(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = llama.naivegenerate(PROMPT, max_new_tokens=40)[0, 5:].tolist()
    stops = sorted({free[9], free[14]})
    monkeypatch.setattr(llama.base_model.generation_config, "eos_token_id", stops)
    end = min(free.index(stop) for stop in stops)
    for generate in (llama.eagenerate, llama.naivegenerate):
        ids, new_token, _, info = generate(PROMPT, max_new_tokens=40, log=True)
        assert ids[0, 5:].tolist() == free[: end + 1]
        assert new_token == end + 1
        rounds = len(info["accept_length"])
        assert 0 <= new_token - 1 - sum(info["accept_length"]) <= rounds


@pytest.mark.parametrize("room", range(1, 12))
def test_never_more_tokens_than_asked(llama: EaModel, room: int) -> None:
    by_new = llama.eagenerate(PROMPT, max_new_tokens=room)
    by_length = llama.eagenerate(PROMPT, max_length=5 + room)
    assert by_new.shape[1] == by_length.shape[1] == 5 + room
    assert by_new.tolist() == by_length.tolist() == llama.naivegenerate(PROMPT, max_new_tokens=room).tolist()


def test_the_models_context_is_a_limit(llama: EaModel) -> None:
    context = llama.target.context_length
    prompt = torch.randint(VOCAB, (1, context - 3), generator=torch.Generator().manual_seed(0))
    assert llama.eagenerate(prompt, max_new_tokens=50).shape[1] == context
    with pytest.raises(ValueError, match="no room"):
        llama.eagenerate(torch.zeros(1, context, dtype=torch.int64), max_length=10_000)


def test_streaming_yields_growing_prefixes_of_the_same_text(llama: EaModel) -> None:
    pieces = [ids[0].tolist() for ids in llama.ea_generate(PROMPT, max_new_tokens=25)]
    final = llama.eagenerate(PROMPT, max_new_tokens=25)[0].tolist()
    assert pieces[-1] == final
    assert len(pieces) > 2
    for shorter, longer in itertools.pairwise(pieces):
        assert len(shorter) < len(longer)
        assert longer[: len(shorter)] == shorter


def test_info_has_an_entry_per_round(llama: EaModel) -> None:
    ids, new_token, idx, info = llama.eagenerate(PROMPT, temperature=1.0, max_new_tokens=50, log=True)
    rounds = idx + 1
    for values in (
        info["tree_time"],
        info["eval_time"],
        info["update_time"],
        info["draft_time"],
        info["accept_length"],
        info["draft_length"],
    ):
        assert len(values) == rounds
    assert all(
        0 <= accepted < drafted <= 4
        for accepted, drafted in zip(info["accept_length"], info["draft_length"], strict=True)
    )
    assert 0 < info["draft_time"][0] < info["reset_tree_time"]
    assert all(
        drafting < update for drafting, update in zip(info["draft_time"][1:], info["update_time"][:-1], strict=True)
    )
    assert new_token == ids.shape[1] - 5 == 50
    assert new_token - 1 - sum(info["accept_length"]) in (rounds, rounds - 1)


def test_a_prefill_can_be_all(llama: EaModel) -> None:
    ids, new_token, idx, info = llama.eagenerate(PROMPT, max_new_tokens=1, log=True)
    assert (ids.shape[1], new_token, idx, info["accept_length"]) == (6, 1, -1, [])


def test_tuning_picks_a_size_it_tried(llama_pair: tuple[Path, Path]) -> None:
    model = load_pair(*llama_pair, total_token=-1, depth=2, top_k=3)
    assert 4 <= model.shape.total_token <= 60
    assert (model.shape.depth, model.shape.top_k) == (2, 3)
    assert (
        model.eagenerate(PROMPT, max_new_tokens=20).tolist() == model.naivegenerate(PROMPT, max_new_tokens=20).tolist()
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": 1.0, "top_p": 1.2}, "top_p"),
        ({"temperature": 1.0, "top_p": math.nan}, "top_p"),
        ({"temperature": 1.0, "top_k": -1}, "top_k"),
        ({"temperature": 1.0, "top_k": 2.5}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_length": 5}, "no room"),
        ({"is_llama3": True}, "tokenizer"),
    ],
)
@pytest.mark.parametrize("method", ["eagenerate", "naivegenerate"])
def test_bad_arguments_are_explained(llama: EaModel, method: str, arguments: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        getattr(llama, method)(PROMPT, **arguments)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "empty"),
        (torch.zeros(2, 4, dtype=torch.int64), "one prompt"),
        (torch.zeros(4, dtype=torch.int64), "one prompt"),
        (torch.zeros(1, 4), "integers"),
        (torch.tensor([[1, VOCAB]]), "vocabulary"),
        (torch.tensor([[1, -1]]), "vocabulary"),
    ],
)
def test_bad_prompts_are_explained(llama: EaModel, prompt: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        llama.eagenerate(prompt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error_not_a_token(llama_pair: tuple[Path, Path], temperature: float) -> None:
    model = load_pair(*llama_pair)
    with torch.no_grad():
        model.base_model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        model.eagenerate(PROMPT, temperature=temperature)


@pytest.mark.parametrize("tree", ["deterministic", "hybrid"])
@pytest.mark.parametrize("verifier", ["tokenwise", "hsd"])
def test_at_temperature_0_every_method_is_the_target(llama: EaModel, tree: str, verifier: str) -> None:
    plain = llama.naivegenerate(PROMPT, max_new_tokens=40)
    eagle, _, _, eagle_info = llama.eagenerate(PROMPT, max_new_tokens=40, log=True)
    ids, _, _, info = llama.eagenerate(PROMPT, max_new_tokens=40, log=True, tree=tree, verifier=verifier)
    assert ids.tolist() == eagle.tolist() == plain.tolist()
    assert info["accept_length"] == eagle_info["accept_length"]
    assert info["draft_length"] == eagle_info["draft_length"]


def test_hsd_samples_children_and_accepts_them(llama: EaModel) -> None:
    shape = TreeShape(12, 2, 3, Sampling(threshold=0.2, rho=1.0, samples=2))
    seen = []

    def observe(tree: DraftTree, target_probs: torch.Tensor) -> Plan:
        seen.append(tree)
        return RULES["hsd"].plan(tree, target_probs)

    rule = Rule("hsd", observe, lossless=True)
    generator = torch.Generator().manual_seed(1)
    decoding = Decoding(llama.target, (llama.drafter, shape), PROMPT, Warper(1.0), 80, frozenset(), generator, rule)
    while not decoding.finished:
        decoding.step()
    assert any(tree.laws is not None and (tree.laws.row_of >= 0).sum() >= 2 for tree in seen)
    assert sum(decoding.info["accept_length"]) > 10


@pytest.mark.parametrize("hsd", [False, True])
def test_an_end_inside_the_tree_ends_the_text(llama: EaModel, monkeypatch: pytest.MonkeyPatch, hsd: bool) -> None:
    inside = 0
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        monkeypatch.setattr(llama.base_model.generation_config, "eos_token_id", [4])
        ids, new_token, _, info = llama.eagenerate(
            PROMPT, temperature=1.0, max_new_tokens=40, log=True, generator=generator, hsd=hsd
        )
        emitted = ids[0, 5:].tolist()
        assert 4 not in emitted[:-1]
        assert emitted[-1] == 4 or new_token == 40
        # Emitted are the first token, what was accepted, and the target's own of each round, unless the last was cut.
        inside += new_token == 1 + sum(info["accept_length"]) + len(info["accept_length"]) - 1
    assert inside > 0


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        ({"tree": "hybird"}, "tree must be one of"),
        ({"verifier": "typical"}, "verifier must be one of"),
        ({"verifier": "greedy"}, "temperature 0"),
        ({"verifier": "naive_hsd", "tree": "chain"}, "never drafted"),
        ({"verifier": "blockwise"}, "tree='chain'"),
        ({"verifier": "blockwise", "hsd": True}, "tree='chain'"),
        ({"verifier": "hsd_published", "hsd": True}, "deterministic"),
    ],
)
def test_unsound_methods_are_refused(llama: EaModel, method: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        llama.eagenerate(PROMPT, temperature=1.0, **method)


def test_a_model_without_a_tokenizer_decodes_and_says_what_is_missing(llama: EaModel) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        llama.get_tokenizer()
