"""A separate draft model: what it shares with the target, and what it drafts."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import DRAFTERS, Method
from eagle.decoding.speculation import speculation
from eagle.drafters.sorted.exits import SortedDraft
from eagle.drafters.vocabulary import shared_vocabulary
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.target.target import Target
from eagle.target.text import Text
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from tests.tiny import VOCAB, load_pair, make_base, make_draft_model, make_pair, make_sorted_draft, write_letters

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
CHAINS = ["chain:tokenwise", "chain:hsd", "chain:naive_hsd"]
METHODS = [*CHAINS, "deterministic:tokenwise", "hybrid:hsd", "paths:tokenwise"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(make_base("llama", tmp_path_factory.mktemp("base")))


def load(base: Path, draft: Path, **kwargs: object) -> EaModel:
    """Without a head."""
    bounds = {"total_token": 12, "depth": 3, "top_k": 3, "paths": 3, "dtype": torch.float64, "device_map": "cpu"}
    return EaModel.from_pretrained(base_model_path=str(base), draft_model_path=str(draft), **bounds | kwargs)


def decoded(model: EaModel, method: str, temperature: float = 0.0, seed: int = 0) -> tuple[list[int], list[int]]:
    tree, verifier = method.split(":")
    ids, _, _, info = model.eagenerate(
        PROMPT,
        temperature,
        tree=tree,
        verifier=verifier,
        max_new_tokens=40,
        log=True,
        generator=torch.Generator().manual_seed(seed),
    )
    return ids[0].tolist(), info["accept_length"]


@pytest.mark.filterwarnings("ignore:the draft model")
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("method", METHODS)
def test_greedy_text_is_the_targets_own(base: Path, tmp_path: Path, architecture: str, method: str) -> None:
    draft = write_letters(make_base(architecture, tmp_path / "draft", seed=3))
    model = load(base, draft)
    assert model.ea_layer is None
    text, accepted = decoded(model, method)
    assert text == model.naivegenerate(PROMPT, max_new_tokens=40)[0].tolist()
    assert sum(accepted) > 0


@pytest.mark.parametrize("method", CHAINS)
def test_all_that_the_target_drafts_for_itself_is_accepted(base: Path, method: str) -> None:
    model = load(base, base)
    _, accepted = decoded(model, method, temperature=1.0)
    # The last round may be cut short by the limit.
    assert set(accepted[:-1]) == {3}


def test_rounds_draft_what_a_fresh_start_drafts(drafters: EaModel) -> None:
    """The draft model's cache after commits holds what reading the text anew puts there."""
    chosen = speculation(drafters.offers, Method.parse("draft/deterministic:tokenwise"), 1.0)
    generator = torch.Generator().manual_seed(3)
    decoding = Decoding(drafters.target, chosen, Text(PROMPT, Warper(1.0), 60, generator=generator))
    while not decoding.finished:
        text = Text(torch.tensor([decoding.tokens[:-1]]), Warper(1.0), 60)
        fresh = chosen.drafter.begin(text, decoding.tokens, decoding.shape)
        with torch.inference_mode():
            fresh.read(None)
            tree = fresh.draft(decoding.shape, 60 - len(decoding.tokens) - 1, None)
        assert tree.tokens.tolist() == decoding.tree.tokens.tolist()
        assert tree.parents.tolist() == decoding.tree.parents.tolist()
        torch.testing.assert_close(tree.keys, decoding.tree.keys)
        decoding.step()
    assert sum(decoding.info["accept_length"]) > 5


def test_paths_share_what_they_have_in_common(drafters: EaModel) -> None:
    chosen = speculation(drafters.offers, Method.parse("draft/paths:hsd"), 1.0)
    seen = 0
    for seed in range(30):
        text = Text(PROMPT, Warper(1.0, top_k=2), 60, generator=torch.Generator().manual_seed(seed))
        tree = Decoding(drafters.target, chosen, text).tree
        assert len(tree) == 1 + 2 * 2
        scored, places = tree.scored()
        paths = {tuple(scored.tokens[list(scored.path_to(node))].tolist()) for node in range(len(scored))}
        assert len(paths) == len(scored) <= len(tree)
        assert [scored.tokens[place] for place in places] == tree.tokens.tolist()
        seen += len(scored) < len(tree)
    assert 0 < seen < 30


def test_tables_may_be_padded_and_tokens_be_missing(base: Path, tmp_path: Path) -> None:
    """As Qwen2.5's: the draft model's table is longer; its tokenizer lacks a token, which is never drafted."""
    draft = make_draft_model(tmp_path / "draft", VOCAB + 3)
    write_letters(draft, VOCAB - 1)
    model = load(base, draft)
    drafter = model.offers["draft"].drafter
    assert drafter.vocabulary.support.tolist() == list(range(VOCAB - 1))
    for method in METHODS:
        text, _ = decoded(model, method)
        assert text == model.naivegenerate(PROMPT, max_new_tokens=40)[0].tolist()
        # Nor is it left out of the text.
        assert any(VOCAB - 1 in decoded(model, method, temperature=1.5, seed=seed)[0] for seed in range(20))


def test_vocabularies_are_compared_by_their_strings() -> None:
    target = {"a": 0, "b": 1, "c": 2, "<x>": 3, "padding": 9}
    device = torch.device("cpu")
    shared = shared_vocabulary(target, target | {"<x>": 5, "<y>": 3}, 6, 6, device)
    assert shared.support.tolist() == [0, 1, 2]
    assert shared.leading
    # What the draft model lacks it reads as something it knows.
    assert shared.to_draft([2, 3]).tolist() == [2, 0]
    assert shared.spread(torch.tensor([0.2, 0.3, 0.5])).tolist() == pytest.approx([0.2, 0.3, 0.5, 0, 0, 0])
    holes = shared_vocabulary(target, {"a": 0, "c": 2, "<x>": 3}, 4, 4, device)
    assert holes.support.tolist() == [0, 2, 3]
    assert holes.columns(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[1.0, 3.0, 4.0]]
    with pytest.raises(InputError, match="another tokenizer: of the target's 4 tokens 0 have the same string"):
        shared_vocabulary({"a": 0, "b": 1, "c": 2, "d": 3}, {"a": 1, "b": 2, "c": 3, "d": 0}, 4, 4, device)


def test_another_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    draft = make_draft_model(tmp_path / "draft")
    file = draft / "tokenizer.json"
    described = json.loads(file.read_text())
    vocab = described["model"]["vocab"]
    described["model"]["vocab"] = {token: (index + 1) % VOCAB for token, index in vocab.items()}
    file.write_text(json.dumps(described))
    assert AutoTokenizer.from_pretrained(draft).get_vocab()["a"] == 1
    with pytest.raises(InputError, match="the draft model has another tokenizer"):
        load(base, draft)


def test_what_cannot_draft_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the draft model"):
        load(base, tmp_path / "nowhere")
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load(base, bare)
    with pytest.raises(InputError, match="depth is the length of what a draft model drafts"):
        load(base, base, depth=0)
    with pytest.raises(InputError, match="paths must be 1 or more"):
        load(base, base, paths=0)


def test_a_larger_draft_model_is_warned_of(base: Path, tmp_path: Path) -> None:
    draft = make_draft_model(tmp_path / "draft", layers=20)
    with pytest.warns(UserWarning, match="drafting will take longer than what it spares"):
        load(base, draft)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(base, base)


def test_drafters_are_asked_for_by_name(drafters: EaModel, llama: EaModel, base: Path) -> None:
    assert drafters.default == "eagle3"
    arguments = {"temperature": 1.0, "max_new_tokens": 20}
    texts = [
        drafters.eagenerate(PROMPT, **arguments, drafter=drafter, generator=torch.Generator().manual_seed(1)).tolist()
        for drafter in (None, "eagle3", "draft")
    ]
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(InputError, match=r"needs the drafter 'draft'.*give draft_model_path"):
        llama.eagenerate(PROMPT, drafter="draft")
    with pytest.raises(InputError, match="drafter must be one of eagle3, draft"):
        llama.eagenerate(PROMPT, drafter="medusa")
    with pytest.raises(InputError, match="only a separate draft model has: draft/chain:naive_hsd"):
        drafters.eagenerate(PROMPT, tree="chain", verifier="naive_hsd")


def test_a_text_longer_than_the_draft_model_reads_is_not_drafted(base: Path, tmp_path: Path) -> None:
    model = load(base, make_draft_model(tmp_path / "draft", max_position_embeddings=16))
    text, accepted = decoded(model, "chain:tokenwise")
    assert text == model.naivegenerate(PROMPT, max_new_tokens=40)[0].tolist()
    assert sum(accepted) > 0
    assert accepted[-20:] == [0] * 20


def test_a_head_and_a_draft_model_stand_side_by_side(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    write_letters(base)
    exits = SortedDraft(str(make_sorted_draft(base, tmp_path / "sorted")))
    draft = str(make_draft_model(tmp_path / "draft"))
    model = load_pair(base, head, draft_model_path=draft, sorted_draft=exits)
    assert sorted(model.offers) == sorted(DRAFTERS)
    expected = model.naivegenerate(PROMPT, max_new_tokens=30).tolist()
    assert all(model.eagenerate(PROMPT, max_new_tokens=30, drafter=name).tolist() == expected for name in model.offers)


def test_a_shape_of_several_paths_is_taken_as_it_is(base: Path) -> None:
    model = load(base, base)
    lengths = {}
    for temperature in (0.0, 1.0):
        arguments = {"tree": TreeShape(99, 1, 1, paths=4), "max_new_tokens": 12, "log": True}
        lengths[temperature] = model.eagenerate(PROMPT, temperature, **arguments)[3]["draft_length"]
    assert lengths[0.0][0] == lengths[1.0][0] == 3


def test_the_size_is_measured_for_a_draft_model_too(base: Path) -> None:
    model = load(base, base, total_token=-1, depth=2)
    assert 4 <= model.shape.total_token <= 60
    assert (model.shape.depth, model.shape.paths) == (1, 3)


def test_a_draft_model_of_unknown_context_drafts_whole_chains(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(base, base)
    monkeypatch.setattr(Target, "context_length", None)
    _, _, _, info = model.eagenerate(PROMPT[:, :1], tree="chain", max_new_tokens=20, log=True)
    # The root and three tokens, also behind a prompt shorter than that.
    assert info["draft_length"][0] == 4
