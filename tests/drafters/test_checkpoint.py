"""Every layout loads to the same head; everything that does not fit is refused by name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle.drafters.eagle3.checkpoint import load_head
from eagle.target.target import Target
from tests.tiny import LAYERS, VOCAB, head_files, load_pair, make_base, stock_model, write_head

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def target(base: Path) -> Target:
    return Target(stock_model(base))


def shard(folder: Path, name: str, save: Callable) -> None:
    """Split the single weights file in two with an index, as large checkpoints are."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, dot, suffix = name.rpartition(".")
    weight_map = {}
    for part, keys in enumerate((sorted(state)[::2], sorted(state)[1::2]), start=1):
        file = f"{stem}-{part:05}-of-00002{dot}{suffix}"
        save({key: state[key] for key in keys}, folder / file)
        weight_map |= dict.fromkeys(keys, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("layout", ["official", "speculators"])
@pytest.mark.parametrize(
    "store",
    [
        lambda folder: None,
        as_pickle,
        lambda folder: shard(folder, "model.safetensors", save_file),
        lambda folder: shard(folder, "pytorch_model.bin", torch.save),
    ],
    ids=["safetensors", "pickle", "sharded safetensors", "sharded pickle"],
)
def test_every_layout_is_the_same_head(base: Path, tmp_path: Path, layout: str, store: Callable[[Path], None]) -> None:
    plain = write_head(tmp_path / "plain", *head_files(base))
    other = write_head(tmp_path / "other", *head_files(base, layout=layout))
    store(other)
    trees = [
        load_pair(base, head).eagenerate(PROMPT, max_new_tokens=30, log=True)[3]["accept_length"]
        for head in (plain, other)
    ]
    heads = [load_pair(base, head).ea_layer for head in (plain, other)]
    assert trees[0] == trees[1]
    for key, tensor in heads[0].state_dict().items():
        assert torch.equal(tensor, heads[1].state_dict()[key])
    assert torch.equal(heads[0].d2t, heads[1].d2t)


@pytest.mark.parametrize("flag", ["norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"])
@pytest.mark.parametrize("layout", ["official", "speculators"])
def test_norm_switches_change_the_drafts_and_never_the_text(base: Path, tmp_path: Path, flag: str, layout: str) -> None:
    plain = load_pair(base, write_head(tmp_path / "plain", *head_files(base, layout=layout)))
    switched = load_pair(base, write_head(tmp_path / "switched", *head_files(base, layout=layout, flags={flag: True})))
    features = torch.randn(4, plain.ea_layer.fc.in_features, dtype=torch.float64)
    outputs = []
    for model in (plain, switched):
        head = model.ea_layer
        hidden = head(torch.tensor([1, 2, 3, 4]), head.project(features), head.new_cache(8).view(4, slice(4)))
        outputs.append(torch.cat(head.predict(hidden), dim=-1))
    assert not torch.allclose(*outputs)
    assert (
        switched.eagenerate(PROMPT, max_new_tokens=30).tolist()
        == plain.naivegenerate(PROMPT, max_new_tokens=30).tolist()
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (2, LAYERS // 2, LAYERS - 3)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 3, 5]}}, (1, 4, 6)),
        ({"eagle_aux_hidden_state_layer_ids": [0, 3, 5]}, (0, 3, 5)),
    ],
)
def test_feature_layers_follow_the_convention_of_their_place(
    base: Path, target: Target, tmp_path: Path, config: dict, expected: tuple[int, ...]
) -> None:
    own, state = head_files(base)
    head = load_head(str(write_head(tmp_path, own | config, state)), target)
    assert head.config.feature_layers == target.feature_layers == expected


def test_the_embedding_is_shared_unless_the_head_has_another(base: Path, target: Target, tmp_path: Path) -> None:
    config, state = head_files(base, layout="speculators")
    same = load_head(str(write_head(tmp_path / "same", config, state)), target)
    assert same.embedding.data_ptr() == target.embedding.data_ptr()
    state["embed_tokens.weight"] = state["embed_tokens.weight"] + 1
    own = load_head(str(write_head(tmp_path / "own", config, state)), target)
    assert torch.equal(own.embedding, state["embed_tokens.weight"])


def test_rope_follows_the_head_not_the_target(base: Path, target: Target, tmp_path: Path) -> None:
    config, state = head_files(base)
    heads = {}
    for name, rope in {
        "absent": {},
        "theta": {"rope_theta": 10000.0},
        "other": {"rope_theta": 500.0},
        "scaled": {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    }.items():
        head = load_head(str(write_head(tmp_path / name, config | rope, state)), target)
        heads[name] = head.new_cache(32).cos
    assert torch.equal(heads["absent"], heads["theta"])
    assert not torch.equal(heads["absent"], heads["other"])
    torch.testing.assert_close(heads["scaled"][2:32:2], heads["absent"][1:16])


def drop(key: str) -> Callable:
    return lambda config, state: state.pop(key)


def put(key: str, tensor: torch.Tensor) -> Callable:
    return lambda config, state: state.update({key: tensor})


def change(**entries: object) -> Callable:
    return lambda config, state: config.update(entries)


def in_two_layers(config: dict, state: dict) -> None:
    for key in [key for key in state if key.startswith("midlayer.")]:
        tensor = state.pop(key)
        for layer in range(2):
            state[key.replace("midlayer", f"layers.{layer}")] = tensor.clone()


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1],
    "long_factor": [3.0, 9.0],
    "original_max_position_embeddings": 64,
}
YARN_ON_HALF = {"rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (
            drop("midlayer.self_attn.q_proj.weight"),
            r"lacks the tensor 'midlayer.self_attn.q_proj.weight' of shape \(16, 32\)",
        ),
        (drop("d2t"), "lacks the tensor 'd2t'"),
        (put("midlayer.surprise", torch.ones(3)), r"unknown tensor 'midlayer.surprise' of shape \(3,\)"),
        (put("fc.weight", torch.ones(16, 47)), r"'fc.weight' has shape \(16, 47\).*need \(16, 48\)"),
        (put("d2t", torch.zeros(5, dtype=torch.int64)), r"'d2t' has shape \(5,\)"),
        (put("d2t", torch.full((6,), 3)), "'d2t' does not map"),
        (put("d2t", torch.tensor([0, -1, 0, 0, 0, 0])), "one-to-one"),
        (put("t2d", torch.ones(VOCAB, dtype=torch.bool)), "'t2d' marks other tokens"),
        (put("t2d", torch.ones(3, dtype=torch.bool)), r"'t2d' has shape \(3,\)"),
        (put("embed_tokens.weight", torch.ones(VOCAB, 3)), r"'embed_tokens.weight' has shape \(8, 3\)"),
        (change(hidden_size=32), "hidden size 32, but this target's is 16"),
        (change(target_hidden_size=32), "hidden size 32, but this target's is 16"),
        (change(vocab_size=9), "vocabulary size 9, but this target's is 8"),
        (change(eagle_aux_hidden_state_layer_ids=[2, 15, 27]), r"\[2, 15, 27\].*6 layers"),
        (in_two_layers, "has 2 layers"),
        (drop("midlayer.hidden_norm.weight"), "EAGLE-1/2 heads, which have none"),
        (change(eagle_config=[1, 2, 3]), r"eagle_config=\[1, 2, 3\]; it must be a JSON object"),
        (change(eagle_aux_hidden_state_layer_ids=7), "must be a list"),
        (change(draft_vocab_size="many"), "draft_vocab_size='many'"),
        (change(draft_vocab_size=9), "draft_vocab_size=9; it must be a number from 1 to its vocab_size, 8"),
        (change(hidden_act="swish5"), "hidden_act='swish5'"),
        (change(num_key_value_heads=3), "no multiple of num_key_value_heads=3"),
        (change(rope_scaling={"type": "dynamic", "factor": 2.0}), "RoPE of the type 'dynamic'; supported are default"),
        (change(rope_scaling=LONGROPE), "RoPE of the type 'longrope'"),
        (change(rope_scaling={"rope_type": "spiral"}), "RoPE of the type 'spiral'"),
        (change(rope_scaling={"rope_type": "linear"}), "factor"),
        (change(rope_scaling={"rope_type": "linear", "factor": "two"}), "without what that needs"),
        (change(rope_scaling=YARN_ON_HALF), r"turns 2 of the 4 entries of a head \(partial_rotary_factor\)"),
        (change(layer_types=["sliding_attention"]), "sliding-window"),
        (change(quantization_config={"bits": 4}), "quantised"),
        (change(speculators_model_type="medusa"), "'medusa' speculator"),
        (change(num_attention_heads="many"), "no valid Llama configuration"),
    ],
)
def test_what_does_not_fit_is_named(
    base: Path, target: Target, tmp_path: Path, break_it: Callable, complaint: str
) -> None:
    config, state = head_files(base)
    break_it(config, state)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_head(str(write_head(tmp_path, config, state)), target)
    assert "\n" not in str(caught.value)


class Payload:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_a_pickle_that_runs_code_is_not_run(base: Path, target: Target, tmp_path: Path) -> None:
    folder = write_head(tmp_path / "head", *head_files(base))
    (folder / "model.safetensors").unlink()
    proof = tmp_path / "ran"
    torch.save({"fc.weight": Payload(f"touch {proof}")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="more than plain weights"):
        load_head(str(folder), target)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678123"), "cannot read the weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "not loaded|cannot read"),
    ],
)
def test_damaged_folders_are_explained(
    base: Path, target: Target, tmp_path: Path, damage: Callable, complaint: str
) -> None:
    folder = write_head(tmp_path, *head_files(base))
    damage(folder)
    with pytest.raises(ValueError, match=complaint):
        load_head(str(folder), target)


@pytest.mark.parametrize("path", ["no/such/folder", "../nowhere", "someone/no-such-model"])
def test_missing_paths_are_explained(base: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub switched off, so the test needs no network."""
    from eagle.model.ea_model import EaModel

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for model, head, what in ((str(base), path, "the draft head"), (path, str(base), "the base model")):
        with pytest.raises(ValueError, match=re.escape(path)) as caught:
            EaModel.from_pretrained(base_model_path=model, ea_model_path=head)
        assert what in str(caught.value)


def test_half_a_pair_is_refused() -> None:
    from eagle.model.ea_model import EaModel

    with pytest.raises(ValueError, match="without its draft head"):
        EaModel.from_pretrained(base_model_path="somewhere")
    with pytest.raises(ValueError, match="without its base model"):
        EaModel.from_pretrained(ea_model_path="somewhere")
    with pytest.raises(ValueError, match="not supported"):
        EaModel.from_pretrained(use_eagle3=False)
