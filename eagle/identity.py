"""What identifies a model: what its files hold, wherever they are and however their folder is spelled.

Small files are taken whole: configurations, the tokenizer's files, chat templates. So are weights of up to ``WHOLE``
bytes in all. Of larger ones these are taken: the size, the header of safetensors, a block at the start of each of its
tensors, and blocks that are spread over all of the file, one in each ``stride`` bytes. Fine-tuning, merging, another
quantisation and training again change values everywhere and cannot be missed. What can be is a change by hand of a few
neighbouring values: one that touches b bytes in one place of weights that are not taken whole is missed with a
probability of about 1 - (b + ``BLOCK``) / stride, where stride is a mebibyte, or more above 16 GiB. The same weights in
other files (sharded otherwise, saved again by another version) are another model here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle.errors import InputError

Identity = dict[str, str]
"""Of each file by its name: the SHA-256 of what it holds, or ``SAMPLED`` and the one of what was taken of it."""

BASE, HEAD, DRAFT = "base_model_sha256", "ea_model_sha256", "draft_model_sha256"
SORTED, INITIAL = "sorted_model_sha256", "initial_sha256"
NAMES = {
    BASE: "base model",
    HEAD: "draft head",
    DRAFT: "draft model",
    SORTED: "sorted draft",
    INITIAL: "head to start from",
}
"""Settings that hold an ``Identity``, and whose it is."""
SAMPLED = "sampled:"
WHOLE = 1 << 30
BLOCK = 4096
# Of all weights together so many blocks are taken at most, and as many again at the starts of tensors.
BLOCKS = 16384
LEAST_STRIDE = 1 << 20
CONFIGS = ("config.json", "adapter_config.json")
TEXT = (
    *("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "tokenizer.json"),
)
# What a tokenizer is made of where there is no tokenizer.json.
SLOW = ("vocab.json", "merges.txt", "vocab.txt", "*.model", "*.tiktoken")
# In the order in which they are looked for when a model is loaded.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ANY_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


def base_identity(path_or_id: str) -> Identity:
    """What a base model holds that shapes its text.

    Args:
        path_or_id: local directory, or the hub id of a model that has been loaded.

    Raises:
        InputError: a file cannot be read.
    """
    return _identity(_folder(path_or_id), base=True)


def head_identity(path_or_id: str) -> Identity:
    """What a draft head holds: its configuration and its weights; the trees stored with it are none of its own.

    Args:
        path_or_id: local directory, or the hub id of a head that has been loaded.

    Raises:
        InputError: a file cannot be read.
    """
    return _identity(_folder(path_or_id), base=False)


@contextlib.contextmanager
def unchanged(*paths_or_ids: str) -> Iterator[None]:
    """See to it that what is loaded and what is identified in here are the same files.

    Args:
        *paths_or_ids: local directories; of a hub id there is nothing to see to, its files are never written twice.

    Raises:
        InputError: a file was exchanged or written to meanwhile.
    """
    folders = [Path(path).expanduser() for path in paths_or_ids]
    before = [_stamps(folder) for folder in folders]
    yield
    for folder, stamps in zip(folders, before, strict=True):
        now = _stamps(folder)
        changed = sorted(name for name in stamps.keys() | now.keys() if stamps.get(name) != now.get(name))
        if changed:
            raise InputError(f"{folder / changed[0]} changed while the model was loaded; run the command again")


def told_apart(name: str, recorded: Any, now: Any) -> str:
    """How a setting differs, for the end of "was made with": of models the files, of anything else both values."""
    if name not in NAMES or not isinstance(recorded, dict) or not isinstance(now, dict):
        return f"{name}={recorded!r}, this run has {now!r}"
    files = sorted(file for file in recorded.keys() | now.keys() if recorded.get(file) != now.get(file))
    return f"another {NAMES[name]}: {', '.join(files)} {'differs' if len(files) == 1 else 'differ'}"


def readable_name(path_or_id: str) -> str:
    """What people call a model: the last part of its path or hub id; ``.`` and ``..`` are the folder that is meant."""
    path = Path(path_or_id).expanduser()
    return path.resolve().name if path.name in ("", "..") else path.name


def _folder(path_or_id: str) -> Path:
    """Where the files of a model are that has been loaded."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    # Slow to import, and not needed by those who only read what was recorded.
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path_or_id, CONFIGS[0])
    if not isinstance(cached, str):
        raise InputError(f"{path_or_id} is no local directory, and it is not in the hub's cache")
    return Path(cached).parent


def _identity(folder: Path, base: bool) -> Identity:
    weights = _weights(folder)
    try:
        sizes = [file.stat().st_size for file in weights]
        total = sum(sizes)
        stride = max(LEAST_STRIDE, total // BLOCKS) if total > WHOLE else None
        small = {_name(folder, file): _whole(file) for file in _small_files(folder, base)}
        large = {
            _name(folder, file): _whole(file) if stride is None or size <= stride else _sampled(file, size, stride)
            for file, size in zip(weights, sizes, strict=True)
        }
    except OSError as error:
        raise InputError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    return small | large


def _name(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


def _small_files(folder: Path, base: bool) -> list[Path]:
    wanted: tuple[str, ...] = (*CONFIGS, *TEXT) if base else CONFIGS
    if base and not (folder / "tokenizer.json").is_file():
        wanted += SLOW
    return _existing(folder, wanted)


def _weights(folder: Path) -> list[Path]:
    """Those files that are loaded: a folder often holds the same weights in several formats."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        files = _existing(folder, ANY_WEIGHTS)
    elif found.suffix == ".json":
        files = _shards(found)
    else:
        files = [found]
    return list(dict.fromkeys([*files, *_existing(folder, ADAPTERS)]))


def _shards(index: Path) -> list[Path]:
    try:
        named = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
        return [index, *sorted(index.parent / name for name in named if (index.parent / name).is_file())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Loading it will say what is wrong.
        return _existing(index.parent, ANY_WEIGHTS)


def _existing(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What tells that a file was exchanged or written to: its size, its time and its inode."""
    if not folder.is_dir():
        return {}
    stamps = {}
    for file in (*_small_files(folder, base=True), *_weights(folder)):
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            stamps[_name(folder, file)] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return stamps


def _whole(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _sampled(file: Path, size: int, stride: int) -> str:
    digest = hashlib.sha256(f"{size}/{stride}".encode())
    with file.open("rb") as source:
        descriptor = source.fileno()
        header = _header(descriptor, size)
        digest.update(header)
        starts = _tensor_starts(header)
        places = {*starts[:: max(1, len(starts) // BLOCKS)], *(_place(at, stride) for at in range(0, size, stride))}
        for place in sorted(places):
            digest.update(os.pread(descriptor, BLOCK, place))
    return SAMPLED + digest.hexdigest()


def _place(start: int, stride: int) -> int:
    """Somewhere in the ``stride`` bytes from ``start``, for each start at another distance, and always the same."""
    drawn = int.from_bytes(hashlib.blake2b(str(start).encode(), digest_size=8).digest(), "big")
    return start + drawn % (stride - BLOCK)


def _header(descriptor: int, size: int) -> bytes:
    """The header of safetensors, its length in front; of another file its first block."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    return os.pread(descriptor, 8 + length if 8 + length <= min(size, WHOLE) else BLOCK, 0)


def _tensor_starts(header: bytes) -> list[int]:
    """Where in the file the tensors of a header begin."""
    try:
        tensors: dict[str, Any] = json.loads(header[8:])
        return sorted(len(header) + entry["data_offsets"][0] for entry in tensors.values() if "data_offsets" in entry)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return []
