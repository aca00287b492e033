"""Compiled layers: the same texts and laws, one compilation for every size, and eager where there is none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from eagle.drafters.eagle3.compiled import CompiledHead
from eagle.drafters.sorted.compiled import CompiledBlocks
from eagle.drafters.sorted.exits import SortedDraft
from eagle.errors import InputError
from eagle.launches import CompiledForms
from eagle.model.ea_model import EaModel
from eagle.target import compiling
from eagle.target.compiled import CompiledLayers
from eagle.tree.shape import TreeShape
from eagle.verification import RULES
from tests.decoding.rounds import round_distances
from tests.tiny import compiles, load_pair, make_base, make_pair, make_sorted_draft

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def sorted_draft(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> SortedDraft:
    """One that nodes leave at the first exit, or at the last."""
    path = make_sorted_draft(pair[0], tmp_path_factory.mktemp("sorted") / "draft")
    return SortedDraft(str(path), thresholds=(0.2, 1.0))


needs_a_compiler = pytest.mark.skipif(not compiles(), reason="no C++ compiler, or no headers of Python")


@pytest.fixture(scope="module")
def compiled(pair: tuple[Path, Path], sorted_draft: SortedDraft) -> EaModel:
    model = load_pair(*pair, dtype=torch.float32, compile="on", sorted_draft=sorted_draft)
    assert model.target.compiled is not None
    assert isinstance(model.drafter.steps, CompiledHead)
    assert isinstance(model.offers["sorted"].drafter.model.compiled, CompiledBlocks)
    return model


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@needs_a_compiler
def test_texts_are_the_stock_models(pair: tuple[Path, Path], compiled: EaModel) -> None:
    stock = AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float32)
    expected = stock.generate(PROMPT, max_new_tokens=60, do_sample=False)
    ids, _, _, info = compiled.eagenerate(PROMPT, max_new_tokens=60, log=True)
    assert torch.equal(ids, expected)
    assert sum(info["accept_length"]) > 0
    assert torch.equal(compiled.naivegenerate(PROMPT, max_new_tokens=60), expected)
    ids, _, _, info = compiled.eagenerate(PROMPT, max_new_tokens=60, log=True, drafter="sorted")
    assert torch.equal(ids, expected)
    assert sum(info["accept_length"]) > 0


@needs_a_compiler
def test_samples_of_a_seed_are_those_of_eager_decoding(
    pair: tuple[Path, Path], sorted_draft: SortedDraft, compiled: EaModel
) -> None:
    eager = load_pair(*pair, dtype=torch.float32, compile="off", sorted_draft=sorted_draft)
    for hsd, drafter in itertools.product((False, True), ("eagle3", "sorted")):
        how = {"temperature": 1.0, "max_new_tokens": 60, "hsd": hsd, "drafter": drafter}
        texts = [
            model.eagenerate(PROMPT, **how, generator=torch.Generator().manual_seed(0)) for model in (eager, compiled)
        ]
        assert torch.equal(*texts)


@needs_a_compiler
def test_nothing_is_compiled_again(compiled: EaModel) -> None:
    before = graphs()
    assert before > 0
    for length, new, nodes in ((1, 20, 2), (5, 100, 3), (70, 40, 8), (130, 100, 12), (200, 50, 5)):
        prompt = torch.arange(length)[None] % 7 + 1
        compiled.eagenerate(prompt, max_new_tokens=new, tree=TreeShape(nodes, 2, 3))
        compiled.eagenerate(prompt, max_new_tokens=new, temperature=1.0, hsd=True)
        compiled.naivegenerate(prompt, max_new_tokens=new)
        compiled.eagenerate(prompt, max_new_tokens=new, tree=TreeShape(nodes, 2, 3), drafter="sorted")
        compiled.eagenerate(prompt, max_new_tokens=new, temperature=1.0, hsd=True, drafter="sorted")
    assert graphs() == before


@needs_a_compiler
@torch.inference_mode()
def test_levels_of_one_node_and_of_several_follow_each_other_as_uncompiled(compiled: EaModel) -> None:
    head = compiled.drafter.head
    generator, text = torch.Generator().manual_seed(0), torch.tensor([3, 1, 4, 1])
    features = torch.randn(4, head.fc.in_features, generator=generator)
    levels = [([5], [0]), ([2, 6], [0, 0]), ([3], [1]), ([7], [0]), ([1, 2, 3], [0, 0, 0])]
    said: list[list[torch.Tensor]] = []
    for steps in (head, compiled.drafter.steps):
        cache, end = head.new_cache(16), len(text)
        logits, hidden = steps.behind(features, text, cache.view(end, slice(end)))
        seen, found = torch.ones(len(hidden), end, dtype=torch.bool), [logits]
        for position, (tokens, parents) in enumerate(levels, start=end):
            end += len(tokens)
            view = cache.view(end, slice(position, position + 1))
            of_level = torch.tensor(tokens), torch.tensor(parents)
            logits, hidden, seen = steps.level(*of_level, hidden, seen, view)
            found.append(logits)
        said.append(found)
    torch.testing.assert_close(*said)


class Norm(torch.nn.Module):
    """Normalises with a number that it holds."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (8,), None, self.eps)


@needs_a_compiler
def test_what_was_compiled_is_found_on_disk() -> None:
    """What it is looked up by holds no name that is given anew."""
    hits = []
    for _ in range(3):
        CompiledForms(Norm.forward)(None, Norm(0.75), torch.arange(8.0))
        hits.append(counters["aot_autograd"]["autograd_cache_hit"])
    assert hits[2] == hits[1] + 1 == hits[0] + 2


@needs_a_compiler
def test_models_that_differ_in_a_number_are_compiled_each_by_itself() -> None:
    x = torch.arange(8.0)
    for eps in (0.5, 0.25, 2.0):
        norm = Norm(eps)
        torch.testing.assert_close(CompiledForms(Norm.forward)(None, norm, x), norm(x))


def test_layers_with_and_without_biases_are_not_of_one_structure(tmp_path: Path) -> None:
    layers = [
        AutoModelForCausalLM.from_pretrained(make_base("llama", tmp_path / str(bias), attention_bias=bias)).model.layers
        for bias in (False, True)
    ]
    for alike in layers:
        assert len(set(CompiledLayers(alike)._functions)) == 1
    assert len(set(CompiledLayers([layers[0][0], layers[1][0]])._functions)) == 2


def test_auto_compiles_on_a_cpu_when_there_is_enough_to_do(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("eagle.model.ea_model.compile_target", asked.append)
    monkeypatch.setattr("eagle.drafters.eagle3.drafter.HeadDrafter.compile", lambda drafter: asked.append(drafter))
    model = load_pair(*pair)
    model.eagenerate(PROMPT, max_new_tokens=5)
    model.expect(100)
    assert not asked
    model.expect(1_000_000)
    assert asked == [model.target, model.drafter]
    asked.clear()
    load_pair(*pair, compile="off").expect(1_000_000)
    assert not asked


def test_without_a_compiler_it_goes_on(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(compiling, "_compile", none)
    monkeypatch.setattr(CompiledHead, "_warm_up", none)
    model = load_pair(*pair, compile="on")
    assert model.target.compiled is None
    assert model.eagenerate(PROMPT, max_new_tokens=5).shape == (1, 10)
    said = capsys.readouterr().err.splitlines()
    assert said.count("it goes on without: RuntimeError: No working C++ compiler found") == 2
    assert model.drafter.steps is model.ea_layer


def test_another_word_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="compile must be one of auto, on, off, not 'yes'"):
        load_pair(*pair, compile="yes")


@needs_a_compiler
@pytest.mark.parametrize("drafter", ["eagle3", "sorted"])
@pytest.mark.parametrize("tree", ["deterministic", "hybrid"])
def test_a_compiled_round_has_the_target_law(compiled: EaModel, tree: str, drafter: str) -> None:
    rules = [RULES["tokenwise"], RULES["hsd"]]
    # What float32 rounds; the mistakes that tests of the laws catch are of 0.003 and more.
    assert max(round_distances(compiled, tree, rules, (1.0, 0.0, 3), 2, drafter=drafter)) < 1e-5
