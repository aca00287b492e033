"""Look-up in the text itself: what is found, the trees of it, and the laws of rounds and generations with them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle.decoding.speculation import lookup_shape
from eagle.drafters.lookup.database import Match
from eagle.drafters.lookup.drafter import LookupDrafter, LookupSettings
from eagle.drafters.lookup.history import History
from eagle.drafters.lookup.lookahead import Lookahead
from eagle.drafters.lookup.ngrams import NGrams
from eagle.drafters.lookup.prediction import predicted
from eagle.drafters.lookup.trie import pick_tree
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.target import Scores
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape
from eagle.verification import RULES
from tests.decoding.rounds import SAMPLING, round_distances
from tests.tiny import load_pair, make_pair

RULES_FOR_PICKS = [RULES["tokenwise"], RULES["hsd"]]


def found(ngrams: NGrams, context: list[int]) -> list[tuple[int, dict[int, int]]]:
    return [(match.length, match.counts) for match in ngrams.matches(context)]


def test_the_longest_match_comes_first_and_then_the_most_frequent_and_the_newest() -> None:
    ngrams = NGrams(1, 3)
    ngrams.read([1, 2, 3, 1, 2, 4, 5, 2, 3, 9, 2, 4, 1, 2])
    assert found(ngrams, [7, 1, 2]) == [(2, {4: 1, 3: 1}), (1, {4: 2, 3: 2})]
    assert [list(counts) for _, counts in found(ngrams, [7, 1, 2])] == [[4, 3], [4, 3]]
    assert found(ngrams, [5, 2]) == [(2, {3: 1}), (1, {4: 2, 3: 2})]
    assert found(ngrams, [9, 9, 8]) == []
    assert found(NGrams(1, 3), [1]) == []


def test_bounds_of_matches_are_kept() -> None:
    text = [1, 2, 3, 4, 1, 2, 3]
    ngrams = NGrams(2, 2)
    ngrams.read(text)
    assert found(ngrams, text) == [(2, {4: 1})]
    assert found(ngrams, [3]) == []


def test_a_text_that_became_shorter_is_as_if_it_had_never_been_longer() -> None:
    source = random.Random(0)  # noqa: S311
    text = [source.randrange(4) for _ in range(60)]
    other = [source.randrange(4) for _ in range(30)]
    back, fresh = NGrams(1, 4), NGrams(1, 4)
    for length in (40, 60, 25):
        back.read(text[:length])
    back.read(text[:25] + other)
    fresh.read(text[:25] + other)
    for _ in range(100):
        context = [source.randrange(4) for _ in range(4)]
        assert found(back, context) == found(fresh, context)


def test_what_a_match_leaves_open_goes_to_the_next_shorter_one() -> None:
    one, two = 5.0, 1.5
    matches = [Match(2, {7: 3, 8: 1}, two), Match(1, {8: 2, 5: 2, 7: 1}, one)]
    left = two / (4 + two)
    probabilities = predicted(matches, 0.001, 9)
    assert probabilities == pytest.approx({7: 3 / (4 + two), 8: 1 / (4 + two), 5: left * 2 / (5 + one)})
    assert sum(probabilities.values()) < 1
    assert list(predicted(matches, 0.001, 2)) == [7, 8]
    assert list(predicted(matches, 0.3, 9)) == [7]


def test_a_tree_holds_the_likeliest_paths_in_their_order() -> None:
    laws = {(): {1: 0.6, 2: 0.3}, (1,): {1: 0.5, 3: 0.4}, (1, 1): {2: 0.9}, (2,): {5: 0.8}}

    def predict(path: tuple[int, ...]) -> dict[int, float]:
        return laws.get(path, {})

    def paths(tree: DraftTree) -> list[tuple[int, ...]]:
        return [tuple(tree.tokens[list(tree.path_to(node)[1:])].tolist()) for node in range(1, len(tree))]

    tree = pick_tree(9, predict, total_token=9, levels=3, least=0.05)
    assert paths(tree) == [(1,), (1, 1), (2,), (1, 1, 2), (1, 3), (2, 5)]
    assert tree.keys.exp().tolist() == pytest.approx([1, 0.6, 0.3, 0.3, 0.27, 0.24, 0.24])
    assert tree.laws is None
    assert tree.tokens[0] == 9
    assert (tree.keys[1:] <= tree.keys[tree.parents[1:]]).all()
    assert paths(pick_tree(9, predict, total_token=3, levels=3, least=0.05)) == [(1,), (1, 1)]
    assert paths(pick_tree(9, predict, total_token=9, levels=1, least=0.05)) == [(1,), (2,)]
    assert paths(pick_tree(9, predict, total_token=9, levels=3, least=0.26)) == [(1,), (1, 1), (2,), (1, 1, 2)]
    assert len(pick_tree(9, lambda path: {}, total_token=9, levels=3, least=0.1)) == 1


def test_lookahead_rows_come_to_hold_what_the_model_says() -> None:
    """Of a model that counts: whatever was guessed first, n-grams of what it says are there after some rounds."""
    grams = History({}, (1.0,), 8)
    ahead = Lookahead(3, 4, grams)
    tokens = [40, 7, 7]
    ahead.begin(tokens)
    for accepted in (0, 0, 2, 0, 1, 0, 0, 3):
        tree = ahead.onto(root_only(tokens[-1]), total_token=1 + 3 * 3, levels=20)
        assert len(tree) <= 1 + 3 * 3
        assert all(depth <= 5 for depth in tree.depths.tolist())
        logits = torch.nn.functional.one_hot((tree.tokens + 1) % 50, 50).float()
        ahead.learn(tree, Scores(logits, None), accepted)
        tokens += range(tokens[-1] + 1, tokens[-1] + 2 + accepted)
    counted = [token for token in range(49) for match in grams.matches([token]) if set(match.counts) == {token + 1}]
    assert len(counted) >= 3


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_round_with_lookahead_rows_has_exactly_the_target_law(
    llama: EaModel, sampling: tuple[float, float, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = LookupDrafter(LookupSettings(window=2, lookahead_level=3))
    monkeypatch.setitem(llama.offers, "lookup", replace(llama.offers["lookup"], drafter=drafter))
    for first in (1, 2):
        assert max(round_distances(llama, "deterministic", RULES_FOR_PICKS, sampling, first, drafter="lookup")) < 1e-9


def test_texts_with_lookahead_rows_are_the_models_own(llama: EaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    offer, prompt = llama.offers["lookup"], torch.tensor([[3, 1, 4, 1, 5, 2, 3, 1]])
    drafted = {}
    for window in (0, 4):
        drafter = LookupDrafter(LookupSettings(window=window))
        monkeypatch.setitem(
            llama.offers, "lookup", replace(offer, drafter=drafter, shape=lookup_shape("lookup", rows=16))
        )
        ids, _, _, info = llama.eagenerate(prompt, max_new_tokens=60, log=True, drafter="lookup")
        assert torch.equal(ids, llama.naivegenerate(prompt, max_new_tokens=60))
        drafted[window] = sum(info["draft_length"])
    assert drafted[4] > drafted[0]


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_round_has_exactly_the_target_law(llama: EaModel, sampling: tuple[float, float, int]) -> None:
    # The prompt has 3 1 4 1 5: behind 1 there are two ways to go on, behind 4 one; nothing is known of 2.
    for first in (1, 4, 2):
        assert max(round_distances(llama, "deterministic", RULES_FOR_PICKS, sampling, first, drafter="lookup")) < 1e-9


@pytest.mark.parametrize("processed", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4}])
def test_greedy_texts_are_the_models_own_and_drafts_are_accepted(tmp_path: Path, processed: dict[str, float]) -> None:
    model = load_pair(*make_pair(tmp_path))
    model.base_model.generation_config.update(**processed)
    prompt = torch.tensor([[3, 1, 4, 1, 5, 2, 3, 1]])
    for settings in (LookupSettings(), LookupSettings(longest=2)):
        model.offers["lookup"] = replace(model.offers["lookup"], drafter=LookupDrafter(settings))
        ids, _, _, info = model.eagenerate(prompt, max_new_tokens=60, log=True, drafter="lookup")
        assert torch.equal(ids, model.naivegenerate(prompt, max_new_tokens=60))
        assert sum(info["accept_length"]) > 0


def test_sampled_texts_accept_drafts_and_a_shape_bounds_them(llama: EaModel) -> None:
    prompt = torch.tensor([[3, 1, 4, 1, 5, 2, 3, 1]])
    accepted = []
    for shape in (None, TreeShape(3, 1, 1)):
        generator = torch.Generator().manual_seed(0)
        _, _, _, info = llama.eagenerate(
            prompt, 1.0, max_new_tokens=150, log=True, drafter="lookup", hsd=True, tree=shape, generator=generator
        )
        accepted.append(sum(info["accept_length"]))
        if shape is not None:
            assert max(info["draft_length"]) <= 3
    assert min(accepted) > 0


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"tree": "hybrid"}, "draws no tokens, so its trees are deterministic, not hybrid"),
        ({"tree": "chain", "verifier": "blockwise"}, "draws no tokens, so its trees are deterministic, not chain"),
        ({"verifier": "blockwise"}, "single chain"),
    ],
)
def test_what_needs_laws_is_refused(llama: EaModel, how: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        llama.eagenerate(torch.tensor([[1, 2]]), max_new_tokens=3, drafter="lookup", **how)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"shortest": 0}, "a match has at least 1 token"),
        ({"shortest": 4, "longest": 3}, "not 4 to 3"),
        ({"longest": 2.5}, "longest must be a whole number"),
        ({"order": "WX"}, "each at most once, not 'WX'"),
        ({"order": "WW"}, "each at most once, not 'WW'"),
        ({"order": ""}, "order is made of the letters W, S, L"),
        ({"order": "WS"}, "S is the file model_db .*there is none"),
        ({"corpus_db": Path("c")}, "L is the file corpus_db .*the order is W"),
    ],
)
def test_settings_that_make_no_sense_are_refused(how: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        LookupSettings(**how)
