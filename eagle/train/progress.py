"""The files of a training run: its settings, its metrics as JSON lines, and checkpoints it can go on from exactly.

A checkpoint is a folder that appears whole or not at all: a head in the official layout and in float32, which any
program here loads, the optimizer's state, and how far the run was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from eagle.errors import InputError
from eagle.locking import alone
from eagle.train.settings import CONFIG, refuse_other_settings

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"
KEPT = 2


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        tokens: answer tokens trained on.
        seconds: that the steps took.
        best_step: the checkpoint with the largest ``best_accepted``.
        best_accepted: expected accepted length of a chain on the held-out answers.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_accepted: float = -1.0


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        path: made by ``begin``.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object a line: of each optimizer step, and of each evaluation."""
        return self.path / METRICS

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after so many steps is."""
        return self.path / CHECKPOINTS / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        return sorted(self.path.glob(f"{CHECKPOINTS}/step-*"))

    def progress(self) -> Progress | None:
        """How far the last checkpoint is; None: there is none.

        Raises:
            InputError: its file cannot be read.
        """
        found = self.checkpoints()
        if not found:
            return None
        file = found[-1] / PROGRESS
        try:
            return Progress(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot read {file}: {error}; remove the folder {found[-1]}") from error

    def best(self) -> Path:
        """The checkpoint that did best on the held-out answers.

        Raises:
            InputError: there is none.
        """
        progress = self.progress()
        if progress is None:
            raise InputError(f"{self.path} holds no checkpoint; train a head with: python -m eagle.train fit")
        return self.checkpoint(progress.best_step)

    def settings(self) -> dict[str, Any]:
        """What the run was begun with.

        Raises:
            InputError: the file cannot be read.
        """
        file = self.path / CONFIG
        try:
            settings = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"cannot read the settings of the run, {file}: {error}; choose another --out") from error
        if not isinstance(settings, dict):
            raise InputError(f"{file} holds no settings; choose another --out")
        return settings

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other programs from training in the same folder meanwhile, see ``eagle.locking`` for where that holds.

        Raises:
            InputError: another program is at it, or the folder cannot be written to.
        """
        with alone(self.path, "training", f"training is writing to {self.path}", "choose another --out"):
            yield

    def begin(self, settings: dict[str, Any]) -> Progress | None:
        """Start a run, or find where to go on; metrics of steps after the last checkpoint are dropped.

        Args:
            settings: everything that shapes the weights, in the types of YAML.

        Returns:
            How far the last checkpoint is; None: there is none.

        Raises:
            InputError: the folder holds a run of other settings (names one, and both values), or cannot be written to.
        """
        progress = self.progress()
        try:
            if progress is None:
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / CONFIG).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
                self.metrics.unlink(missing_ok=True)
                return None
            recorded = self.settings()
            refuse_other_settings(
                self.path, recorded, settings, "choose another --out, or remove that folder to start anew"
            )
            kept = [line for line in read_metrics(self.path) if line["step"] <= progress.step]
            _replace(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error}") from error
        return progress

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics.

        Raises:
            InputError: the disk refused.
        """
        with explained(f"cannot write {self.metrics}"), self.metrics.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(line) + "\n")

    def save(self, progress: Progress, optimizer: list[dict[str, Any]], write_head: Callable[[Path], None]) -> None:
        """Add a checkpoint, and remove those that are neither among the last two nor the best.

        Args:
            progress: goes with it.
            optimizer: its state.
            write_head: writes the head into a folder.

        Raises:
            InputError: the disk refused; earlier checkpoints are as they were.
        """
        final = self.checkpoint(progress.step)
        temporary = final.with_name(f".{final.name}")
        try:
            with explained(f"cannot write the checkpoint {final}; earlier ones are intact"):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                write_head(temporary)
                torch.save(optimizer, temporary / OPTIMIZER)
                (temporary / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
                for file in temporary.iterdir():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
                temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.checkpoints()[:-KEPT]:
            if old != self.checkpoint(progress.best_step):
                shutil.rmtree(old)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """What a disk refuses inside, in whatever type the writing library says so, as an explained error.

    Args:
        what: could not be done.

    Raises:
        InputError: the disk refused.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what} ({reason}); the same command resumes from the last checkpoint") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics; a torn last one is left out.

    Raises:
        InputError: a line is no JSON.
    """
    file = folder / METRICS
    if not file.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{file}, line {number}: not valid JSON ({error}); remove the line") from None
    return lines


def _replace(file: Path, text: str) -> None:
    """Rewrite a file at once."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
