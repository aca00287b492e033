"""Whole generations: equal to autoregressive decoding at temperature 0, the target's law above, and where they end."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2

from eagle.model.decoding import Decoding
from eagle.model.ea_model import EaModel
from eagle.model.sampling import Warper
from eagle.verification import tokenwise
from tests.tiny import ARCHITECTURES, VOCAB, load_pair, make_pair
from tests.verification.law import output_law

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


def sequence_law(model: EaModel, prompt: list[int], length: int, warper: Warper) -> dict[tuple[int, ...], float]:
    """Exact probability of every continuation, from the stock model and the transformers warpers."""
    law = {(): 1.0}
    for _ in range(length):
        paths = list(law)
        ids = torch.tensor([[*prompt, *path] for path in paths])
        with torch.inference_mode():
            probs = warper(model.base_model(ids).logits[:, -1])
        law = {
            (*path, token): law[path] * p
            for path, row in zip(paths, probs.tolist(), strict=True)
            for token, p in enumerate(row)
        }
    return law


def decoded_law(model: EaModel, length: int, sampling: tuple[float, float, int]) -> dict[tuple[int, ...], float]:
    """Exact law of the first tokens that a generation emits, summed over every verdict of every round."""
    law: dict[tuple[int, ...], float] = {}
    context = PROMPT[0].tolist()

    def continue_from(emitted: tuple[int, ...], weight: float) -> None:
        if len(emitted) >= length:
            law[emitted[:length]] = law.get(emitted[:length], 0.0) + weight
            return
        # A generation begun at this prefix drafts what one that got here by rounds would: the drafter has no memory
        # but its caches, whose contents are checked against each other below.
        prompt = torch.tensor([[*context, *emitted]])
        warper = Warper(*sampling)
        decoding = Decoding(
            model.target,
            model.drafter,
            prompt[:, :-1],
            warper,
            200,
            frozenset(),
            generator=None,
            rule=_forced(int(prompt[0, -1])),
        )
        with torch.inference_mode():
            scores = model.target.score(decoding.tree, decoding.cache)
            outcomes = output_law(decoding.tree, warper(scores.logits))
        for (path, token), share in outcomes.items():
            if share > 0:
                nodes = decoding.tree.tokens[list(path[1:])].tolist()
                continue_from((*emitted, *nodes, token), weight * share)

    with torch.inference_mode():
        first = Warper(*sampling)(model.base_model(PROMPT).logits[:, -1])[0]
    for token, p in enumerate(first.tolist()):
        if p > 0:
            continue_from((token,), p)
    return law


def _forced(token: int):
    """A rule that accepts nothing and lets this token follow."""
    from eagle.verification import Verdict

    return lambda tree, target_probs, generator: Verdict((0,), torch.tensor(token))


@pytest.mark.parametrize("sampling", SAMPLING)
def test_sampled_text_has_exactly_the_target_law(llama: EaModel, sampling: tuple[float, float, int]) -> None:
    expected = sequence_law(llama, PROMPT[0].tolist(), 3, Warper(*sampling))
    law = decoded_law(llama, 3, sampling)
    assert sum(abs(law.get(path, 0.0) - p) for path, p in expected.items()) / 2 < 1e-9


def test_that_test_fails_when_the_residual_is_broken(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenwise, "residual", lambda probs, rejected: probs)
    expected = sequence_law(llama, PROMPT[0].tolist(), 3, Warper(1.0))
    law = decoded_law(llama, 3, (1.0, 0.0, 0))
    assert sum(abs(law.get(path, 0.0) - p) for path, p in expected.items()) / 2 > 0.05


def sampled_p_value(model: EaModel, sampling: tuple[float, float, int], draws: int) -> tuple[float, int]:
    """Chi-square of the first 3 tokens of real generations against exact probabilities, rare ones pooled; and how many
    draft tokens were accepted."""
    temperature, top_p, top_k = sampling
    generator = torch.Generator().manual_seed(7)
    counts: dict[tuple[int, ...], int] = {}
    accepted = 0
    for _ in range(draws):
        ids, _, _, info = model.eagenerate(
            PROMPT, temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=4, log=True, generator=generator
        )
        path = tuple(ids[0, 5:8].tolist())
        counts[path] = counts.get(path, 0) + 1
        accepted += sum(info["accept_length"])
    statistic, pooled_p, pooled_count, cells = 0.0, 0.0, 0, 0
    for path, p in sequence_law(model, PROMPT[0].tolist(), 3, Warper(*sampling)).items():
        if p == 0.0 and path in counts:
            return 0.0, accepted
        if p * draws < 5:
            pooled_p, pooled_count = pooled_p + p, pooled_count + counts.get(path, 0)
        else:
            statistic, cells = statistic + (counts.get(path, 0) - draws * p) ** 2 / (draws * p), cells + 1
    if pooled_p * draws >= 1:
        statistic, cells = statistic + (pooled_count - draws * pooled_p) ** 2 / (draws * pooled_p), cells + 1
    return float(chi2.sf(statistic, cells - 1)), accepted


@pytest.mark.parametrize("sampling", [(1.0, 0.0, 0), (0.7, 0.8, 3)])
def test_generations_follow_the_target_law(llama: EaModel, sampling: tuple[float, float, int]) -> None:
    p_value, accepted = sampled_p_value(llama, sampling, draws=700)
    assert p_value > 1e-3
    assert accepted > 200


def test_sampling_shows_a_broken_residual(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenwise, "residual", lambda probs, rejected: probs)
    assert sampled_p_value(llama, (1.0, 0.0, 0), draws=700)[0] < 1e-6


def test_rounds_draft_what_a_fresh_start_drafts(llama: EaModel) -> None:
    """The caches after commits and compactions hold what a prefill of the same tokens puts there."""
    decoding = Decoding(
        llama.target, llama.drafter, PROMPT, Warper(1.0), 60, frozenset(), torch.Generator().manual_seed(3)
    )
    while not decoding.finished:
        fresh = Decoding(
            llama.target,
            llama.drafter,
            torch.tensor([decoding.tokens[:-1]]),
            Warper(1.0),
            60,
            frozenset(),
            None,
            rule=_forced(decoding.tokens[-1]),
        )
        assert fresh.tree.tokens.tolist() == decoding.tree.tokens.tolist()
        assert fresh.tree.parents.tolist() == decoding.tree.parents.tolist()
        torch.testing.assert_close(fresh.tree.scores, decoding.tree.scores)
        decoding.step()
    assert sum(decoding.info["accept_length"]) > 5


def test_a_long_prompt_is_drafted_from_in_pieces(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = torch.randint(VOCAB, (1, 50), generator=torch.Generator().manual_seed(0))
    trees = []
    for chunk in (2048, 7):
        monkeypatch.setattr("eagle.model.drafter.PREFILL_CHUNK", chunk)
        start = Decoding(llama.target, llama.drafter, prompt, Warper(0.0), 60, frozenset(), None)
        trees.append(start.tree)
    assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
    torch.testing.assert_close(trees[0].scores, trees[1].scores)


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
        info["accept_length"],
        info["draft_length"],
    ):
        assert len(values) == rounds
    assert all(
        0 <= accepted < drafted <= 4
        for accepted, drafted in zip(info["accept_length"], info["draft_length"], strict=True)
    )
    assert new_token == ids.shape[1] - 5 == 50
    assert new_token - 1 - sum(info["accept_length"]) in (rounds, rounds - 1)


def test_a_prefill_can_be_all(llama: EaModel) -> None:
    ids, new_token, idx, info = llama.eagenerate(PROMPT, max_new_tokens=1, log=True)
    assert (ids.shape[1], new_token, idx, info["accept_length"]) == (6, 1, -1, [])


def test_tuning_picks_a_size_it_tried(llama_pair: tuple[Path, Path]) -> None:
    model = load_pair(*llama_pair, total_token=-1, depth=2, top_k=3)
    assert 4 <= model.drafter.shape.total_token <= 60
    assert (model.drafter.shape.depth, model.drafter.shape.top_k) == (2, 3)
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


def test_hsd_is_not_there_yet(llama: EaModel) -> None:
    with pytest.raises(NotImplementedError, match="hsd"):
        llama.eagenerate(PROMPT, hsd=True)


def test_a_model_without_a_tokenizer_decodes_and_says_what_is_missing(llama: EaModel) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        llama.get_tokenizer()
