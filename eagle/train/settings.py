"""What the stages of a training have in common: the target, the folder, and settings that may not change half-way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eagle import assets
from eagle.errors import InputError
from eagle.identity import BASE, readable_name, told_apart
from eagle.model.loading import DTYPES

CONFIG = "config.yaml"


@dataclass(frozen=True)
class StageSettings:
    """Of every stage; the metadata are the help texts of the program."""

    base_model_path: str | None = field(
        default=None, metadata={"help": "directory or hub id of the target; default: the embedded model"}
    )
    out: Path | None = field(
        default=None, metadata={"help": "folder of the training; default: training/<name of the base model>"}
    )

    @property
    def folder(self) -> Path:
        """Where the stages put their outputs: ``out``, or ``training/<name of the base model>``."""
        return self.out or Path("training") / readable_name(self.base_model_path or assets.DEFAULT_PAIR)


@dataclass(frozen=True)
class ComputingSettings(StageSettings):
    """Of the stages that run the target.

    Raises:
        InputError: a dtype that there is not.
    """

    dtype: str = field(default="auto", metadata={"help": "of the target's weights; auto is the checkpoint's own"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps; default: the best there is"})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype | str:
        """What ``load_base`` takes."""
        return "auto" if self.dtype == "auto" else getattr(torch, self.dtype)


def refuse_other_settings(folder: Path, recorded: dict[str, Any], settings: dict[str, Any], way_out: str) -> None:
    """Compare what a folder was begun with, with what a run that would go on there has.

    Raises:
        InputError: they differ; names a setting and both values, of models the files.
    """
    if BASE in settings and BASE not in recorded:
        raise InputError(
            f"{folder} was begun by a version that did not record what its models hold ({BASE} is missing in "
            f"{CONFIG}), so nothing can be added to it; {way_out}"
        )
    for name in settings | recorded:
        if recorded.get(name) != settings.get(name):
            told = told_apart(name, recorded.get(name), settings.get(name))
            raise InputError(f"{folder} was begun with {told}; {way_out}")
