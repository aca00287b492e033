"""Scoring a tree says of every node what the stock model says of its path, before and after compaction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eagle.errors import InputError
from eagle.target.attention import GROUPED_SDPA
from eagle.target.target import Target, selected
from eagle.tree.draft_tree import DraftTree
from tests.tiny import ARCHITECTURES, COMMON, HEADS, make_base, stock_model

PARENTS = [0, 0, 0, 1, 1, 2, 3, 5]
TOKENS = [4, 1, 2, 3, 5, 3, 6, 1]


def tree_of(tokens: list[int], parents: list[int]) -> DraftTree:
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths), torch.zeros(len(tokens)))


def path_to(node: int, parents: list[int]) -> list[int]:
    path = [node]
    while path[0]:
        path.insert(0, parents[path[0]])
    return path


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tree_rows_equal_sequential_logits(architecture: str, kernel: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path)
    reference = stock_model(base)
    scored = stock_model(base)
    scored.set_attn_implementation(kernel)
    target = Target(scored, feature_layers=(2, 3, 6))
    cache = target.new_cache(64)
    committed = [3, 1, 4, 1, 5, 2, 6]
    tree = tree_of(TOKENS, PARENTS)
    # Eager attention takes its softmax in float32, whatever the model's dtype.
    close = {"rtol": 1e-9, "atol": 1e-9} if kernel == "sdpa" else {"rtol": 1e-4, "atol": 1e-4}
    with torch.inference_mode():
        prompt = target.prefill(torch.tensor([committed]), cache)
        torch.testing.assert_close(prompt.logits, reference(torch.tensor([committed])).logits[0, -1:], **close)
        for path in ([0, 2, 5, 7], [0, 1], [0]):
            scores = target.score(tree, cache)
            for node in range(len(tree)):
                ids = torch.tensor([committed + [TOKENS[step] for step in path_to(node, PARENTS)]])
                expected = reference(ids, output_hidden_states=True)
                torch.testing.assert_close(scores.logits[node], expected.logits[0, -1], **close)
                features = torch.cat([expected.hidden_states[entry][0, -1] for entry in (2, 3, 6)])
                torch.testing.assert_close(scores.features[node], features, **close)
            cache.keep(path)
            committed += [TOKENS[node] for node in path]
            assert cache.committed == len(committed)
        lone = target.score(tree_of([2], [0]), cache, features=False)
        torch.testing.assert_close(lone.logits[0], reference(torch.tensor([[*committed, 2]])).logits[0, -1], **close)
        assert lone.features is None


def test_a_long_prompt_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits, features and later rounds, for full and for sliding-window attention."""
    for architecture in ("llama", "gemma3_text", "mistral-window"):
        base = make_base(architecture, tmp_path / architecture)
        reference = stock_model(base)
        target = Target(stock_model(base), feature_layers=(2, 6))
        prompt = torch.randint(8, (1, 23), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            whole = target.prefill(prompt, target.new_cache(64))
            monkeypatch.setattr("eagle.target.target.PREFILL_CHUNK", 7)
            cache = target.new_cache(64)
            pieces = target.prefill(prompt, cache)
            monkeypatch.undo()
            torch.testing.assert_close(pieces.logits, whole.logits)
            torch.testing.assert_close(pieces.features, whole.features)
            scores = target.score(tree_of(TOKENS, PARENTS), cache)
            ids = torch.cat([prompt, torch.tensor([[TOKENS[node] for node in path_to(7, PARENTS)]])], dim=1)
            torch.testing.assert_close(scores.logits[7], reference(ids).logits[0, -1])


def test_trees_are_scored_by_the_grouped_kernel(tmp_path: Path) -> None:
    model = stock_model(make_base("llama", tmp_path))
    Target(model)
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {
        GROUPED_SDPA
    }


def test_cache_is_allocated_once_and_compacted_in_place(tmp_path: Path) -> None:
    target = Target(stock_model(make_base("llama", tmp_path)))
    cache = target.new_cache(64)
    with torch.inference_mode():
        target.prefill(torch.tensor([[1, 2, 3]]), cache)
        places = [layer.keys.data_ptr() for layer in cache.tree_layers]
        for path in ([0, 2, 5], [0, 1, 4], [0]):
            target.score(tree_of(TOKENS, PARENTS), cache)
            cache.keep(path)
    assert [layer.keys.data_ptr() for layer in cache.tree_layers] == places
    assert {layer.keys.shape[-2] for layer in cache.tree_layers} == {cache.slabs.capacity}


@pytest.mark.parametrize(
    ("model_type", "config", "complaint"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4, "hidden_size": 16}, "position ids"),
        ("mamba", {"state_size": 4, "expand": 2, "num_hidden_layers": 2, "hidden_size": 16}, "Mamba"),
        ("lfm2", HEADS | {"layer_types": ["conv", "full_attention"] * 3}, "rolled back"),
        (
            "llama4_text",
            HEADS
            | {
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
                "attention_chunk_size": 4,
                "intermediate_size_mlp": 16,
            },
            "chunked attention",
        ),
    ],
)
def test_models_that_cannot_score_a_tree_are_refused(model_type: str, config: dict, complaint: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **COMMON | config))
    with pytest.raises(ValueError, match=complaint):
        Target(model)


def test_an_attention_kernel_without_tree_masks_is_refused(tmp_path: Path) -> None:
    model = stock_model(make_base("llama", tmp_path))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        Target(model)


def test_hidden_states_that_are_counted_otherwise_are_refused(tmp_path: Path) -> None:
    """A transformers that leaves the embeddings out when some are asked for, as 5.17, names other layers by the same
    numbers."""
    model = stock_model(make_base("llama", tmp_path))
    layers = model.config.num_hidden_layers
    states = model(torch.tensor([[1, 2, 3]]), output_hidden_states=True).hidden_states
    asked = model(torch.tensor([[1, 2, 3]]), output_hidden_states=[1]).hidden_states
    assert torch.equal(selected(asked, [1], layers)[0], states[1])
    with pytest.raises(InputError, match=r"transformers 5\S+ does not count .* install what requirements.txt names"):
        selected(states[1:], [1], layers)
