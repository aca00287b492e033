"""Whole generations: equal to autoregressive decoding at temperature 0, the same from a seed, and where they end."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.speculation import Speculation, speculation
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES, Plan, Rule
from tests.decoding.rounds import PROMPT, forced
from tests.tiny import ARCHITECTURES, VOCAB, load_pair, make_pair


@pytest.mark.parametrize("layout", ["official", "speculators"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_autoregressive(architecture: str, layout: str, tmp_path: Path) -> None:
    # A wide tree over most of the vocabulary, so that an untrained head is accepted often.
    model = load_pair(*make_pair(tmp_path, architecture, layout, draft_vocab=VOCAB - 1), total_token=24, top_k=5)
    accepted = 0
    for start in range(2):
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
    assert accepted > 5


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


def test_rounds_draft_what_a_fresh_start_drafts(llama: EaModel) -> None:
    """The caches after commits and compactions hold what a prefill of the same tokens puts there."""
    usual = speculation(llama.offers, Method.named(hsd=False), 1.0)
    decoding = Decoding(llama.target, usual, Text(PROMPT, Warper(1.0), 60, generator=torch.Generator().manual_seed(3)))
    while not decoding.finished:
        fresh = Decoding(
            llama.target,
            replace(usual, rule=forced(decoding.tokens[-1])),
            Text(torch.tensor([decoding.tokens[:-1]]), Warper(1.0), 60),
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
        monkeypatch.setattr("eagle.drafters.eagle3.drafter.PREFILL_CHUNK", chunk)
        usual = speculation(llama.offers, Method.named(hsd=False), 0.0)
        start = Decoding(llama.target, usual, Text(prompt, Warper(0.0), 60))
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
        (torch.zeros(1, 1, 4, dtype=torch.int64), "one prompt"),
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
    text = Text(PROMPT, Warper(1.0), 80, generator=generator)
    decoding = Decoding(llama.target, Speculation(llama.drafter, shape, rule), text)
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
