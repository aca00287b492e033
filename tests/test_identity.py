"""What identifies a model: its content, wherever it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle import identity
from eagle.errors import InputError
from eagle.identity import base_identity, head_identity, readable_name, told_apart, unchanged
from tests.tiny import make_chat_pair


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_chat_pair(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def base(made: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "base")
    return tmp_path / "base"


def change(base: Path, edit: str) -> None:
    """Change a model in one of the ways that change its text."""
    if edit == "a value in the middle of a tensor":
        state = load_file(base / "model.safetensors")
        tensor = state["model.layers.3.mlp.up_proj.weight"]
        tensor[len(tensor) // 2, 3] += 1e-3
        save_file(state, base / "model.safetensors", {"format": "pt"})
    elif edit == "no tokenizer.json":
        (base / "tokenizer.json").unlink()
    else:
        file = base / edit
        file.write_text((file.read_text() if file.exists() else "{}").replace("}", " }", 1))


@pytest.mark.parametrize(
    "edit",
    [
        "a value in the middle of a tensor",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "no tokenizer.json",
    ],
)
def test_what_shapes_the_text_is_part_of_it(base: Path, edit: str) -> None:
    before = base_identity(str(base))
    change(base, edit)
    now = base_identity(str(base))
    name = {"a value in the middle of a tensor": "model.safetensors", "no tokenizer.json": "tokenizer.json"}
    assert {file for file in before | now if before.get(file) != now.get(file)} == {name.get(edit, edit)}


def test_the_same_content_is_the_same_model(
    base: Path, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = base_identity(str(made[0]))
    (tmp_path / "link").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    # What is not loaded shapes nothing: other formats of the weights, notes, what a training left.
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "vocab.json", "tokenizer.model"):
        (base / name).write_text("something")
    for path in (str(base), "base", "./base/", "link", "link/../base"):
        assert base_identity(path) == expected
    cache = tmp_path / "hub"
    snapshot = cache / "models--somebody--tiny" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(base)
    (cache / "models--somebody--tiny" / "refs").mkdir()
    (cache / "models--somebody--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert base_identity("somebody/tiny") == expected


def test_of_a_head_only_configuration_and_weights_count(made: tuple[Path, Path], tmp_path: Path) -> None:
    head = tmp_path / "head"
    shutil.copytree(made[1], head)
    (head / "tree.json").write_text("{}")
    (head / "tokenizer.json").write_text("{}")
    assert head_identity(str(head)) == head_identity(str(made[1]))
    assert set(head_identity(str(head))) == {"config.json", "model.safetensors"}
    (head / "config.json").write_text((head / "config.json").read_text() + " ")
    assert head_identity(str(head)) != head_identity(str(made[1]))


def large(file: Path, tensors: int = 40) -> Path:
    torch.manual_seed(0)
    file.parent.mkdir(exist_ok=True)
    save_file({f"layer.{number}": torch.randn(64, 1024) for number in range(tensors)}, file)
    return file


@pytest.mark.parametrize("kind", ["safetensors", "bin", "shards"])
def test_large_weights_are_sampled_and_fine_tuning_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(identity, "WHOLE", 1 << 20)
    file = large(tmp_path / "m" / "model.safetensors")
    if kind == "bin":
        file = file.rename(file.with_name("pytorch_model.bin"))
    elif kind == "shards":
        file = file.rename(file.with_name("model-00001-of-00001.safetensors"))
        index = {"weight_map": {"layer.0": file.name}}
        (file.parent / "model.safetensors.index.json").write_text(json.dumps(index))
    before = base_identity(str(tmp_path / "m"))
    assert before[file.name].startswith("sampled:")
    assert base_identity(str(tmp_path / "m")) == before
    contents = file.read_bytes()
    # Of one layer of 40 a value in every row: much less than any fine-tuning changes.
    start = len(contents) // 2
    changed = bytearray(contents)
    changed[start : start + (1 << 20) : 4096] = bytes(byte ^ 1 for byte in changed[start : start + (1 << 20) : 4096])
    file.write_bytes(changed)
    assert base_identity(str(tmp_path / "m")) != before
    # Cut off, or longer.
    file.write_bytes(contents + b"0")
    assert base_identity(str(tmp_path / "m")) != before
    file.write_bytes(contents)
    assert base_identity(str(tmp_path / "m")) == before


def test_each_tensor_of_large_safetensors_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WHOLE", 1 << 20)
    file = large(tmp_path / "m" / "model.safetensors")
    before = base_identity(str(file.parent))
    for number in (0, 17, 39):
        state = load_file(file)
        norm = state[f"layer.{number}"]
        norm[0, :8] += 1
        save_file(state, file)
        now = base_identity(str(file.parent))
        assert now != before
        before = now


def test_of_a_huge_file_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as sink:
        sink.truncate(16 << 30)
    read = []
    pread = os.pread

    def counted(descriptor: int, size: int, place: int) -> bytes:
        read.append(size)
        return pread(descriptor, size, place)

    monkeypatch.setattr(os, "pread", counted)
    assert base_identity(str(tmp_path))["model.safetensors"].startswith("sampled:")
    assert len(read) > 10_000
    assert sum(read) < 1 << 27


def test_files_exchanged_while_they_are_loaded_are_noticed(base: Path) -> None:
    with unchanged(str(base), "a/hub-id"):
        pass
    with (
        pytest.raises(InputError, match=r"base/model.safetensors changed while the model was loaded"),
        unchanged(str(base)),
    ):
        change(base, "a value in the middle of a tensor")


def test_a_difference_names_the_files(base: Path) -> None:
    before = base_identity(str(base))
    change(base, "config.json")
    change(base, "chat_template.jinja")
    told = told_apart(identity.BASE, before, base_identity(str(base)))
    assert told == "another base model: chat_template.jinja, config.json differ"
    assert told_apart("seed", 1, 2) == "seed=1, this run has 2"


def test_names_are_of_the_folder_that_is_meant(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base)
    named = {path: readable_name(path) for path in (".", "./", "../base", "../base/", "..", "somebody/tiny", "x/")}
    assert named == {
        **dict.fromkeys((".", "./", "../base", "../base/"), "base"),
        "..": base.parent.name,
        "somebody/tiny": "tiny",
        "x/": "x",
    }
