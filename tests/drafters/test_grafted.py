"""Look-up in the head's trees: the laws of rounds and generations, and that drafts of every source are accepted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import GRAFTED, Method
from eagle.decoding.speculation import Speculation
from eagle.drafters.grafted import GraftedDrafter
from eagle.drafters.lookup.corpus import write_corpus
from eagle.drafters.lookup.drafter import LookupDrafter, LookupSettings
from eagle.drafters.lookup.suffix import SuffixDrafter
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.base import load_tokenizer
from eagle.target.text import Text
from eagle.tree.draft_tree import ONE_HOT
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.decoding.rounds import SAMPLING, round_distances
from tests.tiny import load_pair, make_pair, write_letters

BOTH_RULES = [RULES["tokenwise"], RULES["hsd"]]
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 2, 3, 1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    """A pair whose drafters have databases S and L too, under ``wsl`` and ``eagle3+wsl``."""
    folder = tmp_path_factory.mktemp("pair")
    base, head = make_pair(folder)
    tokenizer = load_tokenizer(str(write_letters(base)))
    texts = {"S": [[2, 5, 6, 3, 5], [5, 6, 1, 2]], "L": [[1, 2, 0, 4, 2, 6, 6, 1, 4]]}
    for letter, each in texts.items():
        write_corpus(folder / letter, each, tokenizer)
    model = load_pair(base, head, lookup=LookupSettings(order="WSL", model_db=folder / "S", corpus_db=folder / "L"))
    return model


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("drafter", GRAFTED)
def test_a_round_has_exactly_the_target_law(model: EaModel, drafter: str, sampling: tuple[float, float, int]) -> None:
    # Behind 1 and 4 of the prompt something is found, behind 2 in the files alone.
    for tree in ("deterministic", "hybrid"):
        for first in (1, 2):
            assert max(round_distances(model, tree, BOTH_RULES, sampling, first, drafter=drafter)) < 1e-9


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("drafter", GRAFTED)
def test_drafts_of_every_source_are_accepted(model: EaModel, drafter: str, temperature: float) -> None:
    shape = TreeShape(12, 0, 3, Sampling(0.1, 0.7, 2), least=0.01)
    method = Method.named(hsd=temperature > 0, drafter=drafter)
    accepted: Counter[str] = Counter()
    with torch.inference_mode():
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            text = Text(PROMPT, Warper(temperature), 120, generator=generator)
            chosen = Speculation(model.offers[drafter].drafter, method.shape(shape), method.rule)
            decoding = Decoding(model.target, chosen, text)
            while not decoding.finished:
                tree, seen = decoding.tree, len(decoding.tokens)
                decoding.step()
                written = decoding.tokens[seen:]
                node = 0
                for token in written:
                    children = [child for child in tree.children[node] if int(tree.tokens[child]) == token]
                    if not children:
                        break
                    node = children[0]
                    drawn = tree.laws is not None and int(tree.laws.row_of[node]) != ONE_HOT
                    # The head runs on the root alone, so what is deeper was looked up.
                    accepted["drawn" if drawn else "looked up" if int(tree.depths[node]) > 1 else "picked"] += 1
    assert accepted["looked up"] > 0
    assert accepted["picked"] > 0
    assert (accepted["drawn"] > 0) == (temperature > 0)


@pytest.mark.parametrize("drafter", GRAFTED)
def test_greedy_texts_are_the_models_own(model: EaModel, drafter: str) -> None:
    expected = model.naivegenerate(PROMPT, max_new_tokens=60)
    for tree in (None, TreeShape(20, 2, 3, least=0.02), TreeShape(3, 0, 1)):
        assert torch.equal(model.eagenerate(PROMPT, max_new_tokens=60, drafter=drafter, tree=tree), expected)


def test_repeated_text_is_copied_whole(model: EaModel) -> None:
    """A text whose end was there before at length: one round takes more of it than the head has levels."""
    period = [3, 1, 4, 1, 5, 2, 6]
    prompt = torch.tensor([period * 6])
    for looking in (LookupDrafter(), SuffixDrafter()):
        drafter = GraftedDrafter(model.offers["eagle3"].drafter, looking)
        text = Text(prompt, Warper(1.0), 120)
        with torch.inference_mode():
            decoding = Decoding(
                model.target, Speculation(drafter, TreeShape(12, 0, 2, least=0.05), BOTH_RULES[0]), text
            )
            decoding.tokens[-1] = period[0]
            tree = decoding.drafting.draft(decoding.shape, 50, None)
            decoding.stop()
        longest = tree.tokens[list(tree.path_to(int(tree.depths.argmax()))[1:])].tolist()
        assert longest == (period[1:] + period)[: len(longest)]
        assert len(longest) >= 8


def test_what_needs_chains_is_refused(model: EaModel) -> None:
    for drafter in GRAFTED:
        with pytest.raises(InputError, match="its trees are deterministic or hybrid, not chain"):
            model.eagenerate(PROMPT, 1.0, max_new_tokens=3, drafter=drafter, tree="chain")


def test_without_a_head_there_is_none_to_graft_on(tmp_path: Path) -> None:
    base, _ = make_pair(tmp_path)
    write_letters(base)
    model = EaModel.from_pretrained(base_model_path=str(base), draft_model_path=str(base), dtype=torch.float64)
    with pytest.raises(InputError, match=r"needs the drafter 'eagle3\+lookup'.*give ea_model_path"):
        model.eagenerate(PROMPT, max_new_tokens=3, drafter="eagle3+lookup")
