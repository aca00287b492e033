"""A base model is taken with all of its tensors and no others; whatever is wrong with its files is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from eagle.errors import InputError
from eagle.target.base import load_base, load_config, load_tokenizer
from tests.tiny import HIDDEN, VOCAB, load_pair, make_base, make_chat_pair, make_pair

WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 134\n"
PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
Tensors = dict[str, torch.Tensor]


def changed(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    """A base model with other tensors in its file."""
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def load(folder: Path, **kwargs: Any) -> Any:
    return load_base(str(folder), dtype=torch.float64, device_map={"": "cpu"}, **kwargs)


def refused(folder: Path, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda state: state.pop("model.layers.3.mlp.up_proj.weight"),
            "lacks the tensor 'model.layers.3.mlp.up_proj.weight'",
        ),
        (lambda state: state.pop("lm_head.weight"), "lacks the tensor 'lm_head.weight'"),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith("model.layers.5.")],
            "lacks the tensor 'model.layers.5.input_layernorm.weight' and 8 more",
        ),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(3, dtype=torch.float64)}),
            "'model.norm.weight' in the shape (3,), but its config.json asks for (16,)",
        ),
        (
            lambda state: state.update({"model.layers.2.self_attn.q_proj.bias": torch.ones(16)}),
            "has the tensor 'model.layers.2.self_attn.q_proj.bias', for which LlamaForCausalLM",
        ),
        (
            lambda state: state.update({"model.layers.6.mlp.up_proj.weight": torch.ones(32, 16)}),
            "has the tensor 'model.layers.6.mlp.up_proj.weight'",
        ),
        (
            lambda state: state.update({"model.wpe.weight": torch.ones(9, 16)}),
            "'model.wpe.weight'",
        ),
    ],
)
def test_tensors_that_are_missing_misshapen_or_too_many_are_named(
    change: Callable[[Tensors], Any], complaint: str, ignore: bool, tmp_path: Path
) -> None:
    base = changed(make_base("llama", tmp_path), change)
    assert complaint in refused(base, **{"ignore_mismatched_sizes": True} if ignore else {})


@pytest.mark.parametrize("expert", ["w1", "w2"])
def test_an_expert_that_is_missing_is_named(expert: str, tmp_path: Path) -> None:
    base = make_base("mixtral", tmp_path)
    changed(base, lambda state: state.pop(f"model.layers.2.block_sparse_moe.experts.1.{expert}.weight"))
    assert "model.layers.2.mlp.experts" in refused(base)


def test_a_shard_without_all_of_its_tensors_is_named(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    stock.save_pretrained(base, max_shard_size="30KB")
    (base / WEIGHTS).unlink(missing_ok=True)
    assert len(list(base.glob("model-*.safetensors"))) > 2
    assert torch.equal(load(base)(PROMPT).logits, stock(PROMPT).logits)
    shard = sorted(base.glob("model-*.safetensors"))[1]
    state = load_file(shard)
    lost = sorted(state)[0]
    save_file({key: tensor for key, tensor in state.items() if key != lost}, shard, metadata={"format": "pt"})
    assert repr(lost) in refused(base)
    shard.unlink()
    assert shard.name in refused(base)


@pytest.mark.parametrize(
    ("architecture", "tied", "leftovers"),
    [
        ("llama", False, {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}),
        ("llama", False, {"model.layers.0.self_attn.k_scale": (), "model.layers.0.self_attn.attn.v_scale": ()}),
        ("llama", False, {"vision_tower.blocks.0.weight": (2, 2), "model.visual.merger.bias": (2,)}),
        ("llama", False, {"multi_modal_projector.linear_1.weight": (2, 2), "mtp.layers.0.norm.weight": (2,)}),
        ("llama", True, {"lm_head.weight": None}),
        ("gpt_neox", False, {f"gpt_neox.layers.0.attention.{name}": () for name in ("bias", "masked_bias")}),
    ],
)
def test_leftovers_that_no_text_depends_on_are_left(
    architecture: str, tied: bool, leftovers: dict[str, tuple[int, ...] | None], tmp_path: Path
) -> None:
    base = make_base(architecture, tmp_path, tie_word_embeddings=tied)
    expected = load(base)(PROMPT).logits
    table = load_file(base / WEIGHTS).get("model.embed_tokens.weight")
    extra = {key: table.clone() if shape is None else torch.ones(shape) for key, shape in leftovers.items()}
    found = load(changed(base, lambda state: state.update(extra)))(PROMPT).logits
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(base / WEIGHTS)
    model = load(base)
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_a_gguf_model_is_loaded(tmp_path: Path) -> None:
    from gguf import GGUFWriter
    from transformers import GgufConfig

    base = make_base("llama", tmp_path, rope_theta=10000.0)
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(6)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(VOCAB)])
    writer.add_token_merges([])
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers.": "blk.",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    for key, tensor in load_file(base / WEIGHTS).items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        writer.add_tensor(key, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (base / WEIGHTS).unlink()
    model = load(base, gguf_file="model.gguf", quantization_config=GgufConfig(dequantize=True))
    assert model(PROMPT).logits.isfinite().all()


@pytest.mark.parametrize(
    ("file", "contents", "complaint"),
    [
        (WEIGHTS, None, "is cut off or damaged"),
        (WEIGHTS, b"12345", "is cut off or damaged"),
        (WEIGHTS, POINTER, f"{WEIGHTS} is not the file itself but a pointer of git-lfs to it; fetch it with: git -C"),
        ("config.json", b"{", "not a valid JSON file"),
        ("config.json", b"[]", "model_type"),
        ("config.json", b'{"model_type": "nonesuch"}', "nonesuch"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(file: str, contents: bytes | None, complaint: str, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path)
    whole = (base / file).read_bytes()
    (base / file).write_bytes(whole[: len(whole) // 2] if contents is None else contents)
    found = refused(base)
    assert complaint in found
    assert str(base) in found
    if file == "config.json":
        with pytest.raises(InputError, match=complaint):
            load_config(str(base))


def test_a_pickle_that_git_left_out_is_named(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path)
    (base / WEIGHTS).unlink()
    (base / "pytorch_model.bin").write_bytes(POINTER)
    assert "pytorch_model.bin is not the file itself but a pointer of git-lfs" in refused(base)


@pytest.mark.parametrize(
    ("file", "contents", "complaint"),
    [
        ("tokenizer.json", b"{", "no tokenizer could be loaded from"),
        ("tokenizer.json", b'{"version": "1.0"}', "no tokenizer could be loaded from"),
        ("tokenizer_config.json", b"{", "no tokenizer could be loaded from"),
        ("tokenizer.json", POINTER, "pointer of git-lfs"),
    ],
)
def test_a_broken_tokenizer_is_one_line(file: str, contents: bytes, complaint: str, tmp_path: Path) -> None:
    base, _ = make_chat_pair(tmp_path)
    (base / file).write_bytes(contents)
    with pytest.raises(InputError, match=complaint) as caught:
        load_tokenizer(str(base))
    assert "\n" not in str(caught.value)


def test_a_mistyped_folder_is_called_a_folder_and_the_hub_only_where_it_can_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh process with the hub switched off, so the test needs no network."""
    (tmp_path / "models").mkdir()
    code = (
        "import sys\nfrom eagle.target.base import load_base, load_config, load_tokenizer\n"
        "from eagle.folders import local_folder\n"
        "for path in sys.argv[1:]:\n"
        "    for load in (load_base, load_config, load_tokenizer, lambda path: local_folder(path, 'the draft head')):\n"
        "        try: load(path)\n"
        "        except ValueError as error: print(error)"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    absolute = str(tmp_path / "models" / "lama")
    paths = ["./haed", absolute, "no/such/folder", "haed", "models/lama", "someone/lama"]
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * len(paths)
    for number, path in enumerate(paths):
        for line in lines[4 * number : 4 * number + 4]:
            assert f"there is no folder {path}" in line
            assert ("hub has no such model or cannot be reached" in line) == (path in paths[4:])
            assert ("owner/name" in line) == (path == "haed")
    assert f"({tmp_path / 'models'} is there)" in lines[4]
    assert "(no/such is not there either)" in lines[8]
    assert "(models is there), and the hub" in lines[16]


def test_a_whole_pair_with_a_harmless_leftover_decodes_as_before(tmp_path: Path) -> None:
    base, head = make_pair(tmp_path)
    expected = load_pair(base, head).eagenerate(PROMPT, max_new_tokens=20)
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    changed(copy, lambda state: state.update({"vision_tower.weight": torch.ones(2), "visual.weight": torch.ones(2)}))
    assert torch.equal(load_pair(copy, head).eagenerate(PROMPT, max_new_tokens=20), expected)


def test_a_configuration_of_another_size_is_an_error(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    assert "has the tensor 'model.layers.4.input_layernorm.weight' and 17 more" in refused(base)
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    assert "lacks the tensor 'model.layers.6.input_layernorm.weight' and 8 more" in refused(base)
