"""Token recycling: what is kept of the scores, the trees of it, and the laws of rounds with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from eagle.drafters.drafter import Drafter
from eagle.drafters.recycling import RANKS, RecyclingDrafter
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.base import load_tokenizer
from eagle.target.target import Scores
from eagle.target.text import Text
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.decoding.rounds import SAMPLING, round_distances
from tests.tiny import load_pair, make_pair, write_letters

PROMPT = torch.tensor([[3, 1, 4, 1, 5, 2, 3, 1]])


@pytest.fixture
def recycling(llama: EaModel) -> Iterator[Drafter]:
    drafter = llama.offers["recycling"].drafter
    drafter.forget()
    yield drafter
    drafter.forget()


def rows(*likeliest: tuple[int, int]) -> Scores:
    """Logits over 12 tokens whose two largest are these."""
    logits = -torch.arange(12.0).repeat(len(likeliest), 1) - 10
    for row, (first, second) in enumerate(likeliest):
        logits[row, first], logits[row, second] = 2.0, 1.0
    return Scores(logits, None)


def test_the_successors_that_were_scored_last_make_the_next_tree() -> None:
    drafter, tokens = RecyclingDrafter(), [4, 7]
    text = Text(torch.tensor([tokens]), Warper(0.0), 50)
    shape = TreeShape(6, 2, 2, least=0.03)
    drafting = drafter.begin(text, tokens, shape)
    drafting.read(rows((5, 6)))
    tokens.append(5)
    # Of 5 nothing is known yet.
    assert len(drafting.draft(shape, 9, None)) == 1
    # A tree of 5 with 8 twice: below the root, and below 9, which was accepted.
    nodes = torch.tensor([5, 8, 9, 8])
    scored = DraftTree(nodes, torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 1, 2]), torch.zeros(4))
    drafting.learn(scored, rows((9, 8), (1, 2), (8, 3), (7, 2)), (0, 2, 3))
    assert drafter.successors[5][:2] == [9, 8]
    assert drafter.successors[8][:2] == [7, 2]
    tokens += [9, 8, 7]
    drafted = drafting.draft(shape, 9, None)
    paths = [[int(drafted.tokens[node]) for node in drafted.path_to(place)] for place in range(len(drafted))]
    # Behind 7 come 5 and 6, behind 5 come 9 and 8; by the ranks of their tokens.
    assert paths == [[7], [7, 5], [7, 5, 9], [7, 6], [7, 5, 9, 8], [7, 5, 8]]
    first, second = RANKS[:2]
    assert drafted.keys.exp().tolist() == pytest.approx([1, first, first**2, second, first**3, first * second])
    drafter.forget()
    assert len(drafting.draft(shape, 9, None)) == 1


def test_what_is_known_can_be_kept_in_a_file(tmp_path: Path) -> None:
    tokenizer, file = load_tokenizer(str(write_letters(tmp_path / "letters"))), tmp_path / "successors"
    drafter, other = RecyclingDrafter(), RecyclingDrafter()
    with pytest.raises(InputError, match="no successors are known yet"):
        drafter.save(file, tokenizer)
    drafter.successors.update({3: [1, 4], 5: [2, 6]})
    drafter.save(file, tokenizer)
    other.successors[7] = [1, 1]
    other.load(file, tokenizer)
    assert other.successors == drafter.successors
    other.successors[3] = [0, 0]
    other.forget()
    assert other.successors == drafter.successors
    with pytest.raises(InputError, match="cannot read the successors"):
        other.load(tmp_path / "absent", tokenizer)
    save_file({"tokens": np.zeros(1)}, tmp_path / "else")
    with pytest.raises(InputError, match="does not hold the successors"):
        other.load(tmp_path / "else", tokenizer)
    tokenizer.add_tokens(["another"])
    with pytest.raises(InputError, match="another tokenizer"):
        other.load(file, tokenizer)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_round_has_exactly_the_target_law(
    llama: EaModel, recycling: RecyclingDrafter, sampling: tuple[float, float, int]
) -> None:
    # As texts before it may have left it.
    recycling.successors.update({2: [3, 5], 3: [1, 2, 6], 5: [2, 1], 1: [1, 4]})
    for first in (2, 5):
        distances = round_distances(
            llama, "deterministic", [RULES["tokenwise"], RULES["hsd"]], sampling, first, drafter="recycling"
        )
        assert max(distances) < 1e-9


def test_greedy_texts_are_the_models_own_and_drafts_are_accepted(tmp_path: Path) -> None:
    model = load_pair(*make_pair(tmp_path))
    ids, _, _, info = model.eagenerate(PROMPT, max_new_tokens=60, log=True, drafter="recycling")
    assert torch.equal(ids, model.naivegenerate(PROMPT, max_new_tokens=60))
    assert sum(info["accept_length"]) > 0
    # What one text taught the next one knows, until it is forgotten.
    *_, again = model.eagenerate(PROMPT, max_new_tokens=60, log=True, drafter="recycling")
    model.offers["recycling"].drafter.forget()
    *_, anew = model.eagenerate(PROMPT, max_new_tokens=60, log=True, drafter="recycling")
    assert sum(again["draft_length"][:3]) > sum(info["draft_length"][:3])
    assert anew["draft_length"] == info["draft_length"]


def test_sampled_texts_accept_drafts(llama: EaModel, recycling: RecyclingDrafter) -> None:
    generator = torch.Generator().manual_seed(0)
    _, _, _, info = llama.eagenerate(
        PROMPT, 1.0, max_new_tokens=150, log=True, drafter="recycling", generator=generator
    )
    assert sum(info["accept_length"]) > 0
