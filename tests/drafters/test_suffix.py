"""Suffix decoding: what matches are found in the text and in those before it, and what is made of them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from eagle.drafters.lookup import suffixes
from eagle.drafters.lookup.drafter import LookupDrafter, LookupSettings
from eagle.drafters.lookup.suffix import SuffixDrafter
from eagle.drafters.lookup.suffixes import Suffixes, following
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.decoding.rounds import SAMPLING, round_distances

SHAPE = TreeShape(16, 11, 4, least=0.1)


def found(texts: Suffixes, context: list[int]) -> list[tuple[int, list[int]]]:
    return [(length, place.text[place.at :]) for length, place in texts.matches(context)]


def test_matches_are_as_long_as_they_are_and_the_newest_come_first() -> None:
    texts = Suffixes()
    texts.begin([])
    texts.read([1, 2, 3, 4, 9, 2, 3, 5, 8, 3, 7, 1, 2, 3])
    assert found(texts, [1, 2, 3]) == [(2, [5, 8, 3, 7, 1, 2, 3]), (3, [4, 9, 2, 3, 5, 8, 3, 7, 1, 2, 3])]
    assert found(texts, [6, 6]) == []
    places = [place for _, place in texts.matches([2, 3])]
    assert following(places, ()) == {4: 1, 5: 1}
    assert following(places, (4, 9)) == {2: 1}
    assert following(places, (7,)) == {}


def test_a_text_that_became_shorter_and_texts_that_are_dropped_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(0)  # noqa: S311
    one, two = ([source.randrange(3) for _ in range(40)] for _ in range(2))
    texts, fresh = Suffixes(), Suffixes()
    for each in (texts, fresh):
        each.begin(one)
    texts.read(one)
    texts.read(one[:10])
    texts.read([*one[:10], *two])
    fresh.read([*one[:10], *two])
    for first in range(3):
        for second in range(3):
            assert found(texts, [first, second]) == found(fresh, [first, second])
    monkeypatch.setattr(suffixes, "MOST_KEPT", 20)
    texts.begin([7, 7, 7])
    texts.read([7, 7, 7])
    assert found(texts, one[:2]) == []
    assert found(texts, [7, 7]) == [(2, [7])]
    # The text at hand stays, however long it is.
    texts.read([7] * 30)
    texts.begin([7] * 30)
    texts.read([7] * 31)
    assert len(found(texts, [7, 7])) == 29


@pytest.mark.parametrize("looking", [SuffixDrafter, lambda: LookupDrafter(LookupSettings(keep=True))])
def test_texts_before_it_are_known_until_they_are_forgotten(
    looking: Callable[[], SuffixDrafter | LookupDrafter],
) -> None:
    drafter, written = looking(), [5, 6, 7, 8, 9, 10]

    def drafted(tokens: list[int]) -> list[int]:
        """Behind a text, which then ends."""
        drafting = drafter.begin(Text(torch.tensor([tokens]), Warper(0.0), 50), tokens, SHAPE)
        tree: DraftTree = drafting.draft(SHAPE, 40, None)
        drafting.end()
        return tree.tokens[1:].tolist()

    assert drafted(list(written)) == []
    assert drafted([1, 5, 6, 7])[:2] == [8, 9]
    # A text that goes on where the last one ended is the same text, and not there twice.
    assert drafted([1, 5, 6, 7, 8, 2]) == []
    drafter.forget()
    assert drafted([1, 5, 6, 7]) == []
    # Of two texts at once neither knows what the other one writes.
    texts = [[5, 6, 7, 8, 5, 6], [5, 6, 3, 4, 5, 6]]
    both = [drafter.begin(Text(torch.tensor([text]), Warper(0.0), 50), text, SHAPE) for text in texts]
    assert [int(drafting.draft(SHAPE, 40, None).tokens[1]) for drafting in both] == [7, 3]


def test_the_match_that_promises_most_is_taken() -> None:
    # Behind the longest match, 7 1 2, came 6 once; behind 1 2 mostly 4 5 3.
    tokens = [7, 1, 2, 6, *[8, 1, 2, 4, 5, 3, 9, 1, 2, 4, 5, 3] * 3, 7, 1, 2]
    drafting = SuffixDrafter().begin(Text(torch.tensor([tokens]), Warper(0.0), 50), tokens, SHAPE)
    tree = drafting.draft(SHAPE, 40, None)
    assert tree.tokens[:3].tolist() == [2, 4, 5]


@pytest.mark.parametrize("sampling", SAMPLING[1:4:2])
def test_a_round_has_exactly_the_target_law(llama: EaModel, sampling: tuple[float, float, int]) -> None:
    for first in (1, 4):
        distances = round_distances(
            llama, "deterministic", [RULES["tokenwise"], RULES["hsd"]], sampling, first, drafter="suffix"
        )
        assert max(distances) < 1e-9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_accept_drafts(llama: EaModel, temperature: float) -> None:
    prompt, generator = torch.tensor([[3, 1, 4, 1, 5, 2, 3, 1]]), torch.Generator().manual_seed(0)
    ids, _, _, info = llama.eagenerate(
        prompt, temperature, max_new_tokens=150, log=True, drafter="suffix", generator=generator
    )
    assert sum(info["accept_length"]) > 0
    if temperature == 0:
        assert torch.equal(ids, llama.naivegenerate(prompt, max_new_tokens=150))
