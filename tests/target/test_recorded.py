"""Recorded forwards and drafts: what they compute is what is computed without, whatever was recorded before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.launches import record
from eagle.decoding.decoding import Decoding
from eagle.decoding.prompt_cache import PromptCache
from eagle.decoding.speculation import Speculation
from eagle.launches import CompiledForms
from eagle.model.ea_model import EaModel
from eagle.target.text import Text
from eagle.tree.draft_tree import DraftTree
from eagle.tree.growth import sampled_by
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.decoding.rounds import round_distances
from tests.tiny import compiles, head_files, load_pair, make_base, make_pair, write_head

SHAPES = (
    TreeShape(12, 2, 3),
    TreeShape(7, 1, 4, least=0.01),
    TreeShape(12, 3, 3, Sampling(0.1, 0.5, 2)),
    TreeShape(12, 2, 5, Sampling(0.1, 0.5, 3)),
    TreeShape.chain(4),
    TreeShape(12, 3, 3, Sampling(0.1, 0.5, 2), least=0.01, least_expanded=0.2),
)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
]


def as_on_a_gpu(pair: tuple[Path, Path], device: str = "cpu") -> EaModel:
    """But that layers are not compiled, and elsewhere what is recorded is computed each time."""
    model = load_pair(*pair, dtype=torch.float32, compile="off", device_map=device)
    record(model)
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_texts_and_samples_are_those_of_eager_decoding_on_every_device(
    tmp_path: Path, architecture: str, device: str
) -> None:
    base = make_base(architecture, tmp_path / "base", max_position_embeddings=2048)
    pair = base, write_head(tmp_path / "head", *head_files(base))
    eager = load_pair(*pair, dtype=torch.float32, compile="off", device_map=device)
    if device == "cpu":
        recording = as_on_a_gpu(pair)
    else:
        recording = load_pair(*pair, dtype=torch.float32, compile="on", device_map=device)
    assert None not in (recording.target.recorded, recording.drafter.recorded)
    # The third is longer than what is recorded first has memory for.
    for length, new in ((5, 20), (250, 20), (1100, 10), (6, 10)):
        prompt = torch.arange(length)[None] % 7 + 1
        for temperature, hsd, shape in [(0.0, False, None), *((1.0, True, shape) for shape in (None, *SHAPES))]:
            texts = [
                model.eagenerate(
                    prompt.to(device),
                    temperature=temperature,
                    max_new_tokens=new,
                    max_length=2048,
                    hsd=hsd,
                    tree=shape,
                    generator=torch.Generator().manual_seed(length),
                    log=True,
                )
                for model in (eager, recording)
            ]
            assert torch.equal(texts[0][0], texts[1][0])
            assert texts[0][3]["accept_length"] == texts[1][3]["accept_length"]
        texts_alone = [model.naivegenerate(prompt.to(device), max_new_tokens=9) for model in (eager, recording)]
        assert torch.equal(*texts_alone)


@pytest.mark.skipif(not compiles(), reason="no C++ compiler, or no headers of Python")
@torch.inference_mode()
def test_steps_of_a_recording_compiled_for_some_sizes_hold_for_all() -> None:
    """As many nodes as picks come first: nothing may be concluded from that; and a lone node comes after many."""
    sample = CompiledForms(sampled_by, any_sizes=True)
    for k, picks in ((10, 10), (1, 10), (7, 10), (10, 4), (1, 10)):
        generator = torch.Generator().manual_seed(k)
        pool = torch.randn(k, 300, generator=generator).softmax(-1)
        arguments = [
            pool.topk(picks).indices,
            torch.rand(k, picks, generator=generator) < 0.3,
            -torch.rand(k, generator=generator),
            torch.tensor([0.5, 0.25]),
            torch.rand(2, k, generator=generator, dtype=torch.float64),
        ]
        wanted = sampled_by(pool.clone(), *arguments)
        found = sample((k == 1, picks == 1, 2), pool, *arguments)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_recorded_turns_of_a_conversation_are_remembered_on_every_device(tmp_path: Path, device: str) -> None:
    """What is copied into a cache that forwards were recorded on is what they read; the third turn outgrows the first
    recording's memory."""
    base = make_base("llama", tmp_path / "base", max_position_embeddings=2048)
    pair = base, write_head(tmp_path / "head", *head_files(base))
    fresh, recording = load_pair(*pair, dtype=torch.float32, compile="off"), as_on_a_gpu(pair, device)
    recording.prompts = PromptCache(2**30)
    for temperature, hsd in ((0.0, False), (1.0, True)):
        tokens = torch.arange(100)[None] % 7 + 1
        for turn in range(3):
            found = recording.prompts.find(tokens[0].tolist(), recording.drafter)
            assert (found is not None) == (turn > 0 or temperature > 0)
            tokens, theirs = (
                model.eagenerate(
                    tokens.to(model.device),
                    temperature=temperature,
                    max_new_tokens=20,
                    max_length=2048,
                    hsd=hsd,
                    generator=torch.Generator().manual_seed(turn),
                ).cpu()
                for model in (recording, fresh)
            )
            assert torch.equal(tokens, theirs)
            tokens = torch.cat([tokens, torch.arange(9 + 900 * turn)[None] % 5 + 1], dim=1)


@pytest.mark.parametrize("tree", ["deterministic", "hybrid"])
def test_a_recorded_round_has_the_target_law(tmp_path: Path, tree: str) -> None:
    rules = [RULES["tokenwise"], RULES["hsd"]]
    assert max(round_distances(as_on_a_gpu(make_pair(tmp_path)), tree, rules, (1.0, 0.0, 3), 2)) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_recorded_drafts_have_the_laws_of_eager_ones(tmp_path: Path, device: str) -> None:
    """Drawn with the same numbers they are the same trees, whatever was drafted before by the same recording."""
    pair = make_pair(tmp_path)
    eager, recording = load_pair(*pair, dtype=torch.float32, compile="off"), as_on_a_gpu(pair, device)
    shape = TreeShape(14, 2, 3, Sampling(0.05, 0.4, 2))
    for warper in (Warper(1.0), Warper(0.8, 0.9), Warper(1.3, top_k=20)):
        for seed in range(4):
            trees: list[DraftTree] = []
            for model in (eager, recording):
                prompt = torch.tensor([[3, 1, 4 + seed, 1, 5]])
                text = Text(prompt, warper, 60, generator=torch.Generator().manual_seed(seed))
                decoding = Decoding(model.target, Speculation(model.drafter, shape, RULES["hsd"]), text)
                decoding.step()
                trees.append(decoding.tree)
                decoding.stop()
            mine, theirs = (tree.laws for tree in trees)
            assert mine is not None
            assert theirs is not None
            for name in ("tokens", "parents", "depths"):
                assert torch.equal(getattr(trees[0], name), getattr(trees[1], name))
            assert torch.equal(mine.row_of, theirs.row_of)
            assert torch.equal(mine.columns, theirs.columns)
            torch.testing.assert_close(mine.rows, theirs.rows.cpu(), rtol=0, atol=1e-6)
