"""A conversation whose earlier turns are remembered is the one whose every turn is read from the start."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.prompt_cache import PromptCache
from eagle.decoding.speculation import speculation
from eagle.drafters.sorted.exits import SortedDraft
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree.warping import Warper
from tests.decoding.rounds import forced, target_table
from tests.target.test_positions import longrope
from tests.tiny import VOCAB, load_pair, make_base, make_draft_model, make_pair, make_sorted_draft, write_letters

PLENTY = 2**30
METHODS = [
    "eagle3",
    "hsd",
    "chain:blockwise",
    "draft/hybrid:hsd",
    "draft/paths:tokenwise",
    "draft/chain:naive_hsd",
    "sorted/deterministic:tokenwise",
    "sorted/hybrid:hsd",
    "lookup/deterministic:tokenwise",
    "suffix/deterministic:tokenwise",
    "recycling/deterministic:tokenwise",
    "eagle3+lookup/hybrid:hsd",
    "eagle3+suffix/deterministic:tokenwise",
]


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    """A model with every drafter there is, of texts of up to 512 tokens."""
    folder = tmp_path_factory.mktemp("every")
    base, head = make_pair(folder)
    make_base("llama", base, max_position_embeddings=512)
    write_letters(base)
    draft = make_draft_model(folder / "draft", initializer_range=0.3, max_position_embeddings=512)
    # Thresholds by which nodes leave at every exit.
    exits = SortedDraft(str(make_sorted_draft(base, folder / "sorted")), thresholds=(0.3, 0.3))
    return load_pair(base, head, draft_model_path=str(draft), paths=2, sorted_draft=exits)


def words(count: int, seed: int) -> list[int]:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def begun(
    model: EaModel,
    method: str | None,
    prompt: list[int],
    prompts: PromptCache | None,
    temperature: float = 1.0,
    seed: int = 0,
    new: int = 24,
) -> Decoding:
    model_method = None if method is None else Method.parse(method)
    generator = torch.Generator().manual_seed(seed)
    text = Text(torch.tensor([prompt]), Warper(temperature), len(prompt) + new, generator=generator)
    return Decoding(model.target, speculation(model.offers, model_method, temperature), text, prompts=prompts)


def written(decoding: Decoding) -> list[int]:
    while not decoding.finished:
        decoding.step()
    return decoding.tokens


def conversation(
    model: EaModel, method: str | None, prompts: PromptCache | None, temperature: float
) -> tuple[list[int], list[int], list[int]]:
    """Four turns: their tokens, how many of each were remembered, and how many of each round accepted."""
    tokens, remembered, accepted = words(70, 1), [], []
    for turn in range(4):
        for offer in model.offers.values():
            offer.drafter.forget()
        decoding = begun(model, method, tokens, prompts, temperature, seed=turn)
        tokens = written(decoding) + words(9, 10 + turn)
        remembered.append(decoding.remembered)
        accepted += decoding.info["accept_length"]
    return tokens, remembered, accepted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_remembered_conversation_is_the_same(every: EaModel, method: str | None, temperature: float) -> None:
    """Text by text and round by round, with the same draws; in float64, where no rounding decides."""
    tokens, remembered, accepted = conversation(every, method, PromptCache(PLENTY), temperature)
    assert (tokens, [0, 0, 0, 0], accepted) == conversation(every, method, None, temperature)
    # All but what is behind the last multiple of 32 of what the turn before has committed.
    ends = [94 + 33 * turn for turn in range(3)]
    assert remembered[0] == 0
    for end, count in zip(ends, remembered[1:], strict=True):
        assert end - 60 < count < end


@pytest.mark.parametrize("method", METHODS)
def test_drafts_and_scores_behind_what_is_remembered(every: EaModel, method: str) -> None:
    """Another temperature and another end than those of the text that is remembered: the first trees are a fresh
    start's, node by node and key by key, and so is what the target says of them."""
    prompts = PromptCache(PLENTY)
    written(begun(every, method, words(70, 1), prompts))
    prompt = words(70, 1)[:66] + words(20, 5)
    for offer in every.offers.values():
        offer.drafter.forget()
    again = begun(every, method, prompt, prompts, temperature=0.7, seed=3)
    for offer in every.offers.values():
        offer.drafter.forget()
    fresh = begun(every, method, prompt, None, temperature=0.7, seed=3)
    assert again.remembered == 64
    for _ in range(3):
        assert again.tokens == fresh.tokens
        assert again.tree.tokens.tolist() == fresh.tree.tokens.tolist()
        assert again.tree.parents.tolist() == fresh.tree.parents.tolist()
        torch.testing.assert_close(again.tree.keys, fresh.tree.keys, rtol=0, atol=1e-10)
        with torch.inference_mode():
            scores = [each.target.score(each.tree.scored()[0], each.cache) for each in (again, fresh)]
        torch.testing.assert_close(scores[0].logits, scores[1].logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(scores[0].features, scores[1].features, rtol=0, atol=1e-10)
        for each in (again, fresh):
            each.cache.keep(())
            each.step()


@pytest.mark.parametrize("architecture", ["mistral-window", "gemma3_text", "gpt_neox", "qwen2-mixed"])
def test_the_law_behind_what_is_remembered_is_the_stock_models(tmp_path: Path, architecture: str) -> None:
    model = load_pair(*make_pair(tmp_path, architecture))
    prompts = PromptCache(PLENTY)
    tokens = written(begun(model, "hsd", words(70, 1), prompts))
    prompt = tokens[:100] + words(7, 2)
    again = begun(model, "hsd", prompt, prompts)
    assert again.remembered == 64
    law = again.text.warper(again._prompt_logits)[0]
    torch.testing.assert_close(law, target_table(model, Warper(1.0), torch.tensor([prompt]))(()), rtol=0, atol=1e-10)


def test_drafters_share_what_the_target_remembers(every: EaModel) -> None:
    """A drafter with a model needs its own memory of the text, one without needs none."""
    prompts, prompt = PromptCache(PLENTY), words(70, 1)
    expected = {method: written(begun(every, method, prompt, None)) for method in (None, "hsd", "draft/hybrid:hsd")}
    remembered = []
    for method in ("hsd", None, "draft/hybrid:hsd", "hsd", "draft/hybrid:hsd", "eagle3+lookup/hybrid:hsd"):
        decoding = begun(every, method, prompt, prompts)
        if method in expected:
            assert written(decoding) == expected[method]
        remembered.append(decoding.remembered)
    assert remembered == [0, 64, 0, 64, 64, 64]


def test_a_branch_leaves_the_other_one_as_it_is(every: EaModel) -> None:
    prompts, begin = PromptCache(PLENTY), words(70, 1)
    branches = [written(begun(every, "hsd", begin + words(40, seed), prompts)) for seed in (7, 8)]
    for branch, seed in zip(branches, (3, 4), strict=True):
        prompt = branch + words(5, seed)
        decoding = begun(every, "hsd", prompt, prompts)
        assert decoding.remembered == 128
        assert written(decoding) == written(begun(every, "hsd", prompt, None))


def test_several_texts_at_once_and_ended_early(every: EaModel) -> None:
    """Two are written in turns, one is stopped, one fails; what they leave serves the next."""
    prompts, prompt = PromptCache(PLENTY), words(70, 1)
    one, other, failing = (begun(every, "hsd", prompt, prompts, seed=seed) for seed in (1, 2, 3))
    for decoding in (one, other, one, other, one):
        decoding.step()
    one.stop()
    assert len(prompts) == 1
    failing.rule = forced(VOCAB + 5)
    with pytest.raises((RuntimeError, IndexError)):
        written(failing)
    assert len(prompts) == 1
    following = one.tokens + words(20, 3)
    again = begun(every, "hsd", following, prompts)
    assert again.remembered >= 64
    assert written(other) == written(begun(every, "hsd", prompt, None, seed=2))
    assert written(again) == written(begun(every, "hsd", following, None))


def test_memory_is_bounded_and_the_oldest_goes_first(every: EaModel) -> None:
    one = PromptCache(PLENTY)
    written(begun(every, "hsd", words(70, 0), one))
    layers, positions, numbers = 7, 93, 2 * 2 * 4
    assert one.nbytes == pytest.approx(layers * positions * numbers * 8, rel=0.1)
    prompts = PromptCache(round(2.5 * one.nbytes))
    for seed in (1, 2, 1, 3):
        decoding = begun(every, "hsd", words(70, seed), prompts)
        written(decoding)
        assert prompts.nbytes <= prompts.most_bytes
    # 2 was used longest ago.
    found = [begun(every, "hsd", words(70, seed), prompts).remembered for seed in (1, 2, 3)]
    assert found == [64, 0, 64]
    nothing = PromptCache(0)
    written(begun(every, "hsd", words(70, 1), nothing))
    assert (len(nothing), nothing.nbytes) == (0, 0)
    with pytest.raises(InputError, match="0 bytes or more"):
        PromptCache(-1)


def test_a_conversation_is_kept_once(every: EaModel) -> None:
    prompts = PromptCache(PLENTY)
    conversation(every, "hsd", prompts, 1.0)
    assert len(prompts) == 1


def test_short_and_equal_prompts(every: EaModel) -> None:
    """Prompts around the steps in which texts are remembered, and one that is a beginning of what is remembered."""
    prompts = PromptCache(PLENTY)
    written(begun(every, "hsd", words(130, 1), prompts))
    for length, expected in ((1, 0), (2, 0), (32, 0), (33, 32), (34, 32), (64, 32), (65, 64), (129, 128), (130, 128)):
        prompt = words(130, 1)[:length]
        decoding = begun(every, "hsd", prompt, prompts)
        assert decoding.remembered == expected
        assert written(decoding) == written(begun(every, "hsd", prompt, None))


def test_where_positions_change_their_encoding_nothing_is_remembered(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    make_base("llama", base, **longrope(64))
    model, prompts = load_pair(base, head), PromptCache(PLENTY)
    assert model.target.switch is not None
    tokens = written(begun(model, "hsd", words(40, 1), prompts))
    assert len(prompts) == 0
    assert begun(model, "hsd", [*tokens, 1], prompts).remembered == 0


def test_a_draft_model_whose_positions_change_reads_all(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    write_letters(base)
    draft = make_draft_model(tmp_path / "draft", **longrope(64))
    model, prompts = load_pair(base, head, draft_model_path=str(draft)), PromptCache(PLENTY)
    tokens = written(begun(model, "draft/hybrid:hsd", words(70, 1), prompts))
    prompt = [*tokens, 1, 2]
    assert [begun(model, method, prompt, prompts).remembered for method in ("draft/hybrid:hsd", None)] == [0, 64]


def test_prompts_of_the_model(every: EaModel) -> None:
    """``EaModel.prompts`` serves every way in which it writes."""
    prompt = words(70, 1)
    plain = every.eagenerate([prompt], max_new_tokens=20)
    every.prompts = PromptCache(PLENTY)
    try:
        for _ in range(2):
            assert torch.equal(every.eagenerate([prompt], max_new_tokens=20), plain)
            assert torch.equal(every.naivegenerate([prompt], max_new_tokens=20), plain)
            *_, last = every.ea_generate([prompt], max_new_tokens=20)
            assert torch.equal(last, plain)
        params = itertools.islice(every.ea_generate([[*plain[0].tolist(), 3]], max_new_tokens=20), 2)
        assert len(list(params)) == 2
        assert len(every.prompts) > 0
    finally:
        every.prompts = None
