"""Folders of checkpoints: where a path or a hub id leads, and files that are not there yet."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from eagle.errors import InputError

CONFIG_NAME = "config.json"
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
# What a file is replaced by where a repository was cloned without its large files. Source: git-lfs, docs/spec.md, by
# which such a text is shorter than 1,024 bytes.
LFS_POINTER, LFS_LONGEST = b"version https://git-lfs.github.com/spec/", 1024
LARGE_FILES = ("*.safetensors", "*.bin", "*.gguf", "tokenizer.json", "*.model")
HUB_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
HUB_ID = re.compile(rf"{HUB_NAME}(/{HUB_NAME})?")


def local_folder(path_or_id: str, what: str) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub id downloaded to the hub's cache.

    Args:
        path_or_id: local directory or hub id.
        what: how to name it in an error ("the draft head").

    Raises:
        InputError: it is neither, could not be fetched, or is a clone without its large files.
    """
    folder = existing_folder(path_or_id, what)
    if folder is not None:
        return folder
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise not_found(path_or_id, what, error) from error


def existing_folder(path_or_id: str, what: str) -> Path | None:
    """The folder that a path leads to; None: there is none, and it may be the id of a model on the hub.

    Args:
        path_or_id: local directory or hub id.
        what: how to name it in an error.

    Raises:
        InputError: it is a file, neither a folder nor a hub id, or a clone without its large files.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        refuse_lfs_pointers(folder)
        return folder
    if folder.exists():
        raise InputError(f"{what}: {path_or_id} is a file; give the directory that holds {CONFIG_NAME} and the weights")
    if not HUB_ID.fullmatch(path_or_id):
        raise InputError(f"{what}: there is no folder {path_or_id}{_how_far(folder)}")
    return None


def not_found(path_or_id: str, what: str, error: Exception) -> InputError:
    """What to say of a name that is no folder, and that the hub did not serve either.

    Args:
        path_or_id: passed ``existing_folder``.
        what: how to name it.
        error: the hub's.
    """
    missing = f"{what}: there is no folder {path_or_id}{_how_far(Path(path_or_id))}"
    if "/" not in path_or_id:
        return InputError(f"{missing}; a model of the hub is named owner/name")
    return InputError(f"{missing}, and the hub has no such model or cannot be reached ({first_line(error)})")


def refuse_lfs_pointers(folder: Path) -> None:
    """Look for large files that a clone left out.

    Raises:
        InputError: there is one; says how to get it.
    """
    for file in sorted(file for pattern in LARGE_FILES for file in folder.glob(pattern)):
        if file.is_file() and file.stat().st_size < LFS_LONGEST and file.read_bytes().startswith(LFS_POINTER):
            raise InputError(
                f"{file} is not the file itself but a pointer of git-lfs to it; fetch it with: git -C {folder} lfs pull"
            )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    # The text of a KeyError is the key alone.
    return name if not lines else f"{name}: {lines[0]}" if isinstance(error, KeyError) else lines[0]


def _how_far(folder: Path) -> str:
    """Where a missing folder was looked for, if that says more than its name: a typing error is in what follows."""
    parent = folder.parent
    if parent in (Path(), folder):
        return f" in {Path.cwd()}"
    if parent.is_dir():
        return f" ({parent} is there)"
    return "" if HUB_ID.fullmatch(str(folder)) else f" ({parent} is not there either)"
