"""Heads that are published in a way of their own load as what their tensors say; other readers understand ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle import assets
from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.head import PROJECTIONS
from eagle.drafters.eagle3.writing import LAYOUTS, OFFICIAL, write_head
from eagle.errors import InputError
from eagle.target.target import Target
from tests.tiny import HIDDEN, VOCAB, head_files, load_pair, make_base, stock_model
from tests.tiny import write_head as write_files

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
# Keys of the official layout's config.json, and what their readers do with them.
# EAGLE: SafeAILab/EAGLE, eagle/model/configs.py (EConfig), cnets.py (Model, LlamaAttention), ea_model.py. Absent, bias
# is true, rope_theta 10,000, num_key_value_heads is num_attention_heads; head_dim may be absent.
EAGLE = """
    vocab_size draft_vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim hidden_act max_position_embeddings rms_norm_eps rope_theta rope_scaling bias pad_token_id bos_token_id
    eos_token_id tie_word_embeddings
"""
# SpecForge: sgl-project/SpecForge, specforge/modeling/draft/llama3_eagle.py, scripts/train_eagle3.py.
SPECFORGE = """
    vocab_size draft_vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim
    hidden_act max_position_embeddings rms_norm_eps rope_theta rope_scaling pad_token_id eagle_config
"""
# vLLM: vllm/model_executor/models/llama_eagle3.py, vllm/v1/worker/gpu_model_runner.py. It takes attention_bias or bias
# for one of all four projections, and reads the hidden states at the top level only.
VLLM = """
    architectures vocab_size draft_vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps rope_theta rope_scaling attention_bias
    bias mlp_bias eagle_aux_hidden_state_layer_ids
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def target(base: Path) -> Target:
    return Target(stock_model(base))


def drafts(base: Path, head: Path) -> Any:
    """A text and what was accepted of each draft."""
    output = load_pair(base, head).eagenerate(PROMPT, max_new_tokens=30, log=True)
    return output[0].tolist(), output[3]["accept_length"]


def written_again(head: Any, target: Target, folder: Path, layout: str = OFFICIAL) -> Path:
    folder.mkdir(parents=True)
    write_head(head, target, folder, layout, torch.float64, "somebody/base")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layers_are_those_that_there_are(layout: str, base: Path, tmp_path: Path) -> None:
    config, state = head_files(base, layout=layout)
    expected = drafts(base, write_files(tmp_path / "plain", config, state))
    layer = config if layout == OFFICIAL else config["transformer_layer_config"]
    layer |= {"num_hidden_layers": 40, "layer_types": ["full_attention"] * 40}
    assert drafts(base, write_files(tmp_path / "copied", config, state)) == expected


@pytest.mark.parametrize("said", [{}, {"draft_vocab_size": VOCAB}, {"draft_vocab_size": None}])
@pytest.mark.parametrize("d2t", [torch.zeros(VOCAB, dtype=torch.int64), torch.arange(VOCAB)], ids=["zero", "identity"])
@pytest.mark.parametrize("marked", [False, True])
def test_maps_of_a_whole_vocabulary_that_say_nothing_are_not_read(
    said: dict, d2t: torch.Tensor, marked: bool, base: Path, tmp_path: Path
) -> None:
    config, state = head_files(base, draft_vocab=VOCAB)
    del config["draft_vocab_size"]
    expected = drafts(base, write_files(tmp_path / "plain", config, state))
    state |= {"d2t": d2t, "t2d": torch.full((VOCAB,), marked)}
    assert drafts(base, write_files(tmp_path / "mapped", config | said, state)) == expected


@pytest.mark.parametrize("biases", [(), ("q_proj", "up_proj"), PROJECTIONS])
def test_joined_products_are_the_same(biases: tuple[str, ...], base: Path, target: Target, tmp_path: Path) -> None:
    config, state = head_files(base)
    for name in biases:
        block = "self_attn" if name[0] in "qkvo" else "mlp"
        rows = len(state[f"midlayer.{block}.{name}.weight"])
        state[f"midlayer.{block}.{name}.bias"] = torch.randn(rows, dtype=torch.float64)
    head = load_head(str(write_files(tmp_path / "head", config, state)), target)
    torch.manual_seed(0)
    tokens, features = torch.tensor([1, 2, 3]), torch.randn(3, head.fc.in_features, dtype=torch.float64)
    expected = head.behind(features, tokens, head.new_cache(8).view(3, slice(3)))
    head.join()
    assert not hasattr(head.midlayer.self_attn, "q_proj")
    torch.testing.assert_close(head.behind(features, tokens, head.new_cache(8).view(3, slice(3))), expected)


@pytest.mark.parametrize("joined", [False, True])
def test_what_is_remembered_is_what_whole_steps_write(joined: bool, base: Path, target: Target, tmp_path: Path) -> None:
    head = load_head(str(write_files(tmp_path / "head", *head_files(base))), target)
    if joined:
        head.join()
    torch.manual_seed(0)
    tokens, features = torch.tensor([1, 2, 3]), torch.randn(3, head.fc.in_features, dtype=torch.float64)
    caches = [head.new_cache(8), head.new_cache(8)]
    head.behind(features, tokens, caches[0].view(5, slice(2, 5)))
    head.remember(tokens, head.project(features), caches[1].view(5, slice(2, 5)))
    assert caches[1].keys.abs().sum() > 0
    torch.testing.assert_close(caches[1].keys, caches[0].keys)
    torch.testing.assert_close(caches[1].values, caches[0].values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("biases", [(), PROJECTIONS[:3], ("o_proj",), ("q_proj", "up_proj"), PROJECTIONS])
def test_projections_have_the_biases_that_there_are_and_keep_them_when_written(
    biases: tuple[str, ...], said: bool, layout: str, base: Path, target: Target, tmp_path: Path
) -> None:
    config, state = head_files(base)
    for name in biases:
        block = "self_attn" if name[0] in "qkvo" else "mlp"
        rows = len(state[f"midlayer.{block}.{name}.weight"])
        state[f"midlayer.{block}.{name}.bias"] = torch.randn(rows, dtype=torch.float64)
    config |= {"attention_bias": said, "mlp_bias": said}
    head = load_head(str(write_files(tmp_path / "head", config, state)), target)
    assert head.config.biases == set(biases)
    for key, tensor in head.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    folder = written_again(head, target, tmp_path / "again", layout)
    raw = json.loads((folder / "config.json").read_text())
    layer = raw if layout == OFFICIAL else raw["transformer_layer_config"]
    attention, mlp = (any(name in biases for name in part) for part in (PROJECTIONS[:4], PROJECTIONS[4:]))
    assert (layer["attention_bias"], layer["mlp_bias"]) == (attention, mlp)
    again = load_head(str(folder), target)
    # Others have a bias in all projections of a block or in none: the rest are zeros.
    assert again.config.biases == {*(PROJECTIONS[:4] if attention else ()), *(PROJECTIONS[4:] if mlp else ())}
    assert drafts(base, folder) == drafts(base, tmp_path / "head")


@pytest.mark.parametrize("draft_vocab", [VOCAB, VOCAB - 2])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_without_lm_head_drafts_with_the_targets(
    draft_vocab: int, tied: bool, layout: str, tmp_path: Path
) -> None:
    base = make_base("llama", tmp_path / "base", tie_word_embeddings=tied)
    target = Target(stock_model(base))
    config, state = head_files(base, draft_vocab=draft_vocab)
    del state["lm_head.weight"]
    head = load_head(str(write_files(tmp_path / "head", config, state)), target)
    assert torch.equal(head.lm_head.weight, target.model.get_output_embeddings().weight[head.target_ids])
    folder = written_again(head, target, tmp_path / "again", layout)
    assert drafts(base, folder) == drafts(base, tmp_path / "head")


def test_an_lm_head_that_the_target_cannot_lend_is_missing(base: Path, target: Target, tmp_path: Path) -> None:
    config, state = head_files(base)
    del state["lm_head.weight"]
    narrow = config | {"hidden_size": HIDDEN // 2, "target_hidden_size": HIDDEN}
    state["embed_tokens.weight"] = torch.ones(VOCAB, HIDDEN // 2)
    with pytest.raises(InputError, match=r"lacks the tensor 'lm_head.weight' of shape \(6, 8\)"):
        load_head(str(write_files(tmp_path, narrow, state)), target)


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "mrope", "mrope_section": [1, 1]},
        {"rope_type": "default", "mrope_section": [1, 1], "mrope_interleaved": True},
        {"rope_type": "mrope", "type": "mrope", "mrope_section": [1, 1]},
    ],
)
def test_multimodal_rope_is_plain_rope_for_text(rope: dict, base: Path, target: Target, tmp_path: Path) -> None:
    config, state = head_files(base)
    config["rope_theta"] = 5e4
    plain = load_head(str(write_files(tmp_path / "plain", config, state)), target).new_cache(32)
    head = load_head(str(write_files(tmp_path / "mrope", config | {"rope_scaling": rope}, state)), target)
    assert torch.equal(head.new_cache(32).cos, plain.cos)
    again = load_head(str(written_again(head, target, tmp_path / "again")), target)
    assert torch.equal(again.new_cache(32).cos, plain.cos)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 134\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_in_place_of_the_weights_is_called_one(name: str, base: Path, target: Target, tmp_path: Path) -> None:
    folder = write_files(tmp_path, *head_files(base))
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(InputError, match=f"{name} is not the file itself but a pointer of git-lfs.*git -C .* lfs pull"):
        load_head(str(folder), target)


def as_eagle_reads(raw: dict[str, Any]) -> None:
    """What the original code needs, beyond the keys: facts of EConfig and of ``Model``."""
    # With the key, whatever its value, the embeddings stay random.
    assert ("target_hidden_size" in raw) == (raw.get("target_hidden_size", raw["hidden_size"]) != raw["hidden_size"])
    scaling = raw["rope_scaling"]
    if scaling is not None:
        assert set(scaling) == {"type", "factor"}
        assert scaling["type"] == "linear"
        assert isinstance(scaling["factor"], float)


@pytest.mark.parametrize("rope", [{}, {"rope_theta": 5e5}, {"rope_scaling": {"rope_type": "linear", "factor": 2}}])
@pytest.mark.parametrize("layers", [None, [0, 2, 4]])
def test_a_written_head_has_every_key_that_its_readers_look_for(
    rope: dict, layers: list[int] | None, base: Path, target: Target, tmp_path: Path
) -> None:
    config, state = head_files(base)
    config |= rope | ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": layers}} if layers else {})
    head = load_head(str(write_files(tmp_path / "head", config, state)), target)
    raw = json.loads((written_again(head, target, tmp_path / "again") / "config.json").read_text())
    for reader in (EAGLE, SPECFORGE, VLLM):
        assert raw.keys() >= set(reader.split())
    as_eagle_reads(raw)
    assert raw["rope_theta"] == rope.get("rope_theta", 10000.0)
    assert raw["bias"] is raw["attention_bias"] is False
    assert raw["num_hidden_layers"] == 1
    assert raw["eagle_aux_hidden_state_layer_ids"] == list(head.config.feature_layers)
    nested = raw["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
    assert nested == [entry - 1 for entry in head.config.feature_layers]


def test_a_head_of_another_width_than_its_target_says_so(base: Path, target: Target, tmp_path: Path) -> None:
    config, state = head_files(base)
    half = HIDDEN // 2
    shrink: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "q_proj": lambda t: t[:, :HIDDEN],
        "k_proj": lambda t: t[:, :HIDDEN],
        "v_proj": lambda t: t[:, :HIDDEN],
        "gate_proj": lambda t: t[:, :half],
        "up_proj": lambda t: t[:, :half],
        "lm_head": lambda t: t[:, :half],
    }
    for key, tensor in state.items():
        if key not in ("d2t", "t2d"):
            name = next((name for name in shrink if name in key), None)
            state[key] = shrink[name](tensor) if name else tensor[:half]
    state["embed_tokens.weight"] = torch.randn(VOCAB, half, dtype=torch.float64)
    narrow = config | {"hidden_size": half, "target_hidden_size": HIDDEN}
    head = load_head(str(write_files(tmp_path / "head", narrow, state)), target)
    folder = written_again(head, target, tmp_path / "again")
    raw = json.loads((folder / "config.json").read_text())
    assert (raw["hidden_size"], raw["target_hidden_size"]) == (half, HIDDEN)
    assert drafts(base, folder) == drafts(base, tmp_path / "head")


def test_the_shipped_head_has_every_key_that_its_readers_look_for() -> None:
    raw = json.loads((assets.head() / "config.json").read_text())
    for reader in (EAGLE, SPECFORGE, VLLM):
        assert raw.keys() >= set(reader.split())
    as_eagle_reads(raw)
    assert "target_hidden_size" not in raw
    assert (raw["rope_theta"], raw["rope_scaling"], raw["bias"]) == (100000.0, None, False)
    # Those that it was trained on, see its card; the second convention leaves the embeddings out.
    assert raw["eagle_aux_hidden_state_layer_ids"] == [3, 16, 28]
    assert raw["eagle_config"] == {"eagle_aux_hidden_state_layer_ids": [2, 15, 27]}
