"""Training on answers of a target: Hugging Face Accelerate, one command for a CPU, a GPU or many.

A step takes packed batches, lets the frozen target read them, and follows the gradient. Everything is decided by the
settings, the answers and the number of processes: a run that was interrupted goes on from its last checkpoint as if
nothing had happened.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from tqdm import tqdm

from eagle import assets
from eagle.devices import wide_dtype
from eagle.errors import InputError
from eagle.identity import Identity
from eagle.model.loading import existing_device
from eagle.target.base import load_base
from eagle.target.target import Target
from eagle.train.answers import ANSWERS, read_answers
from eagle.train.batches import Batch, Document, batch_of, documents_of, pack, plan, split
from eagle.train.curves import draw_curves
from eagle.train.features import Reader, Reading
from eagle.train.fit_settings import TrainingSettings
from eagle.train.optimizer import Optimizer
from eagle.train.progress import OPTIMIZER, Progress, RunFolder, explained, read_metrics
from eagle.train.readings import KeptReadings
from eagle.train.student import Student, Tally
from eagle.train.vocab import VOCABULARY, DraftVocabulary

TENSORBOARD = "tensorboard"
CURVES = "curves.png"
READINGS = "readings-{}.bin"


def accelerator_of(settings: TrainingSettings) -> Accelerator:
    """Accelerate, as a training's settings want it.

    Raises:
        InputError: a single device is named.
    """
    device = existing_device(settings.device)
    if ":" in device:
        raise InputError(f"--device {device}: name a kind of device, and choose among GPUs with CUDA_VISIBLE_DEVICES")
    # Precision and accumulation are the settings' business, whatever a configuration of Accelerate's launcher says; of
    # the latter only a plugin comes before the launcher's environment.
    accumulation = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(cpu=device == "cpu", mixed_precision="no", gradient_accumulation_plugin=accumulation)


@dataclass(frozen=True)
class Lessons:
    """What is learned from.

    Attributes:
        training: documents to train on.
        held_out: documents to evaluate on.
        vocabulary: that is drafted.
    """

    training: list[Document]
    held_out: list[Document]
    vocabulary: DraftVocabulary

    @classmethod
    def of(cls, settings: TrainingSettings, bar: bool) -> Lessons:
        """Those in a training's folder.

        Args:
            settings: of the training.
            bar: whether to show progress.

        Raises:
            InputError: there are none, or nothing in them to train on.
        """
        answers = read_answers(settings.folder / ANSWERS, bar=bar)
        training, held_out = split(answers, settings.max_length, settings.held_out)
        prompts = {tuple(document.tokens[: document.start]) for document in held_out}
        for folder in settings.also:
            documents = documents_of(read_answers(folder / ANSWERS, bar=bar), settings.max_length)
            training += [each for each in documents if tuple(each.tokens[: each.start]) not in prompts]
        return cls(training, held_out, DraftVocabulary.load(settings.folder / VOCABULARY))


def frozen_target(settings: TrainingSettings, path: str, accelerator: Accelerator) -> Target:
    """The target whose answers they are.

    Raises:
        InputError: it cannot be loaded, or changes its position encoding within a document.
    """
    target = Target(load_base(path, dtype=settings.torch_dtype, device_map={"": accelerator.device}))
    target.refuse_crossing(1, settings.max_length)
    return target


def carry_out(
    settings: TrainingSettings,
    name: str,
    accelerator: Accelerator,
    target: Target,
    identities: Mapping[str, Identity],
    lessons: Lessons,
    make: Callable[[Run], Student],
    left_random: Sequence[str] = (),
) -> None:
    """Train, or go on training, until the budget is spent.

    Args:
        settings: of the run.
        name: of its folder in the training's.
        accelerator: of this process.
        target: the frozen target.
        identities: of the models that were loaded, by setting.
        lessons: what is learned from.
        make: what is trained, given the run before it has begun.
        left_random: parts that begin at random though they were to begin otherwise.

    Raises:
        InputError: the folder holds a run of other settings, or cannot be written to.
    """
    folder = RunFolder(settings.folder / name)
    with folder.locked() if accelerator.is_main_process else contextlib.nullcontext():
        run = Run(settings, folder, accelerator, target, identities, lessons, make)
        if accelerator.is_main_process:
            run.describe(left_random)
        run.train()


class Run:
    """A training run in progress.

    Args:
        settings: of the run.
        folder: where it writes.
        accelerator: of this process.
        target: the frozen target.
        identities: of the models that were loaded, by setting.
        lessons: what is learned from.
        make: what is trained, given the run before it has begun.

    Raises:
        InputError: the folder holds a run of other settings.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        folder: RunFolder,
        accelerator: Accelerator,
        target: Target,
        identities: Mapping[str, Identity],
        lessons: Lessons,
        make: Callable[[Run], Student],
    ) -> None:
        training, held_out, vocabulary = lessons.training, lessons.held_out, lessons.vocabulary
        self.settings, self.folder, self.accelerator = settings, folder, accelerator
        self.target, self.training = target, training
        self.held_out = held_out[: settings.held_out_most]
        self.reader = Reader(target, vocabulary.target_ids)
        self.group = settings.accumulation * accelerator.num_processes
        self.planned = plan(training, settings.batch_tokens, self.group, settings.epochs, settings.seed)
        # Every process looks before the main one writes.
        found = folder.progress()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            folder.begin(settings.shaping(identities, training + held_out, vocabulary, accelerator.num_processes))
        accelerator.wait_for_everyone()
        self.resumed, self.progress = found is not None, found or Progress()
        self.kept = None
        if settings.keep_readings:
            file = folder.path / READINGS.format(accelerator.process_index)
            if not self.resumed:
                file.unlink(missing_ok=True)
            self.kept = KeptReadings(self.reader, self.training + self.held_out, file)
        self.student = make(self)
        self.steps = self._budgeted(self.planned)
        self.optimizer = Optimizer(
            self.student,
            settings.optimizer,
            settings.learning_rate,
            settings.matrix_learning_rate,
            settings.weight_decay,
        )
        if self.resumed:
            self._load(folder.checkpoint(self.progress.step))
        self.wrapped = accelerator.prepare(self.student)

    def describe(self, left_random: Sequence[str]) -> None:
        """Say on standard error what is about to happen."""
        if left_random:
            assets.say(f"the target has nothing to start these from, so they are random: {', '.join(left_random)}")
        if self.reader.obstacle is not None:
            assets.say(f"the target reads documents one at a time: {self.reader.obstacle}")
        if self.resumed:
            assets.say(f"{self.folder.path}: going on after step {self.progress.step}")
        tokens = sum(self._counts(step)[0] for step in self.steps)
        parameters = sum(each.numel() for each in self.student.parameters() if each.requires_grad)
        assets.say(
            f"{parameters / 1e6:.1f} M parameters; {len(self.training):,} answers, {len(self.held_out)} held out; "
            f"{len(self.steps):,} steps, {tokens:,} answer tokens"
        )

    def train(self) -> None:
        """Take the steps that are left."""
        total, progress = len(self.steps), self.progress
        with self._board() as board, self._bar(progress.step, total) as bar:
            if not self.resumed:
                progress = self._checkpoint(progress, board)
            for step in range(progress.step, total):
                began = time.perf_counter()
                line = self._step(step, total)
                seconds = progress.seconds + time.perf_counter() - began
                counts = self._counts(self.steps[step])
                progress = replace(progress, step=step + 1, tokens=progress.tokens + counts[0], seconds=seconds)
                speed = counts[0] / (time.perf_counter() - began)
                self._log("train", progress, line | {"tokens_per_second": round(speed, 1)}, board)
                bar.set_postfix({"tok/s": f"{speed:.0f}", "accepted": f"{line['accepted']:.2f}"})
                bar.update()
                if progress.step % self.settings.every == 0 or progress.step == total:
                    progress = self._checkpoint(progress, board)
        self.progress = progress
        if self.accelerator.is_main_process:
            assets.say(
                f"{self.folder.path}: best on held-out answers after step {progress.best_step}, "
                f"{progress.best_accepted:.3f} {self.student.measure}"
            )

    def _budgeted(self, steps: list[list[list[int]]]) -> list[list[list[int]]]:
        steps = steps[: self.settings.steps]
        if self.settings.tokens is None:
            return steps
        kept, tokens = 0, 0
        while kept < len(steps) and tokens < self.settings.tokens:
            tokens += self._counts(steps[kept])[0]
            kept += 1
        return steps[:kept]

    def _counts(self, step: list[list[int]]) -> list[int]:
        """Rows of an optimizer step that reach each column."""
        return self.student.rows_of([self.training[index] for batch in step for index in batch])

    def _step(self, step: int, total: int) -> dict[str, Any]:
        """One optimizer step; what to log of it."""
        share = self.settings.rate(step, total)
        counts = self._counts(self.steps[step])
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        mine = self.steps[step][process::processes]
        sums = torch.zeros(())
        for number, indices in enumerate(mine, start=1):
            batch = batch_of([self.training[index] for index in indices]).to(self.accelerator.device)
            reading = self.read(batch, indices)
            last = number == len(mine)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, of_batch = self.wrapped(batch, reading, counts)
                # Processes average their gradients; the losses are shares of one mean over all of them.
                self.accelerator.backward(loss * processes)
            sums = of_batch if number == 1 else sums + of_batch
        norm = float(self.accelerator.clip_grad_norm_(self.student.parameters(), self.settings.clipping))
        # Both are sums over all processes, so that all of them stop where one has met something that is no number.
        tally = Tally.of(self.accelerator.reduce(sums).cpu())
        if not (tally.finite and math.isfinite(norm)):
            raise self._derailed(
                f"step {step + 1} of {total} has a loss of {fmean(tally.loss):g} and a gradient of norm {norm:g}"
            )
        self.optimizer.step(share)
        return {"learning_rate": share * self.settings.learning_rate, "gradient_norm": norm, **asdict(tally)}

    def _derailed(self, what: str) -> InputError:
        """What to say when a loss, a gradient or a weight is not a number any more: nothing good comes after that."""
        where, found = self.folder.path, self.folder.checkpoints()
        if self.progress.step == 0 and not found:
            return InputError(
                f"{where}: {what} already: the target overflows in this --dtype, or --initial is nothing sound"
            )
        return InputError(
            f"{where}: {what}; {found[-1].name} is the last good checkpoint. Begin anew in another --out with lower "
            f"learning rates, also from there (--initial {found[-1]}), or with --dtype float32 if the target overflows"
        )

    def read(self, batch: Batch, indices: Sequence[int]) -> Reading:
        """What the target says of a batch; indices: of its documents among those trained on, then those held out."""
        return self.reader.read(batch) if self.kept is None else self.kept.read(batch, indices)

    @torch.no_grad()
    def _evaluate(self) -> Tally:
        """What is trained, on the held-out answers."""
        device, processes = self.accelerator.device, self.accelerator.num_processes
        batches = pack(self.held_out, self.settings.batch_tokens, None)
        sums = torch.zeros(5, self.student.columns, dtype=wide_dtype(device), device=device)
        for indices in batches[self.accelerator.process_index :: processes]:
            batch = batch_of([self.held_out[index] for index in indices]).to(device)
            reading = self.read(batch, [len(self.training) + index for index in indices])
            sums += self.student(batch, reading, [1] * self.student.columns)[1]
        return Tally.of(self.accelerator.reduce(sums).cpu())

    def _checkpoint(self, progress: Progress, board: Any) -> Progress:
        """Evaluate, log, save."""
        tally = self._evaluate()
        sound = all(bool(parameter.isfinite().all()) for parameter in self.student.parameters())
        if not (tally.finite and sound):
            raise self._derailed(f"after step {progress.step} the loss on held-out answers is {fmean(tally.loss):g}")
        if tally.accepted > progress.best_accepted:
            progress = replace(progress, best_step=progress.step, best_accepted=tally.accepted)
        self._log("held_out", progress, asdict(tally), board)
        if self.accelerator.is_main_process:
            self.folder.save(progress, self.optimizer.state(), self.student.write)
            picture = self.folder.path / CURVES
            with explained(f"cannot write {picture}"):
                draw_curves(read_metrics(self.folder.path), picture)
        self.accelerator.wait_for_everyone()
        return progress

    def _load(self, checkpoint: Path) -> None:
        try:
            self.student.read(checkpoint)
            self.optimizer.load(
                torch.load(checkpoint / OPTIMIZER, map_location=self.accelerator.device, weights_only=True)
            )
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"cannot go on from {checkpoint}: {reason}; remove it, to use an older one") from error

    def _log(self, kind: str, progress: Progress, values: dict[str, Any], board: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        place = {"kind": kind, "step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 2)}
        self.folder.log(place | values)
        if board is None:
            return
        for name, value in values.items():
            numbered = value if isinstance(value, list) else [value]
            for number, each in enumerate(numbered, start=1):
                tag = f"{kind}/{name}/{number}" if isinstance(value, list) else f"{kind}/{name}"
                board.add_scalar(tag, each, progress.step)

    @contextlib.contextmanager
    def _board(self) -> Iterator[Any]:
        """TensorBoard's writer; None where it is not installed, or on other processes than the main one."""
        if not self.accelerator.is_main_process:
            yield None
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            assets.say("without TensorBoard curves: pip install tensorboard")
            yield None
            return
        with SummaryWriter(str(self.folder.path / TENSORBOARD), purge_step=self.progress.step + 1) as writer:
            yield writer

    def _bar(self, done: int, total: int) -> tqdm[Any]:
        quiet = not self.accelerator.is_main_process
        return tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, smoothing=0.1, disable=quiet)
