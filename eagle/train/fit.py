"""Training a head on answers of its target."""

from __future__ import annotations

import contextlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle import assets
from eagle.drafters.eagle3.config import FLAGS
from eagle.errors import InputError
from eagle.identity import BASE, INITIAL, base_identity, head_identity, unchanged
from eagle.target.base import load_base
from eagle.target.target import Target
from eagle.train.answers import ANSWERS, read_answers
from eagle.train.batches import batch_of, split
from eagle.train.fit_settings import FitSettings
from eagle.train.initial import INITIALS, new_head, shape_for
from eagle.train.progress import RunFolder, explained
from eagle.train.trainee import Trainee
from eagle.train.training import Run, accelerator_of
from eagle.train.vocab import VOCABULARY, DraftVocabulary

FIT = "fit"
UNITS, UNITS_KEY = "units.safetensors", "units"


def fit(settings: FitSettings) -> None:
    """Train, or go on training, until the budget is spent.

    Raises:
        InputError: anything about the settings, the files or the model that does not fit.
    """
    folder = settings.folder
    accelerator = accelerator_of(settings)
    answers = read_answers(folder / ANSWERS, bar=accelerator.is_main_process)
    training, held_out = split(answers, settings.max_length, settings.held_out)
    vocabulary = DraftVocabulary.load(folder / VOCABULARY)
    path = assets.resolve_base(settings.base_model_path)
    started_from = {} if settings.initial in INITIALS else {INITIAL: settings.initial}
    with unchanged(path, *started_from.values()):
        target = Target(load_base(path, dtype=settings.torch_dtype, device_map={"": accelerator.device}))
        target.refuse_crossing(1, settings.max_length)
        shape = shape_for(
            target, vocabulary.size, settings.feature_layers, {flag: getattr(settings, flag) for flag in FLAGS}
        )
        head, left_random = new_head(target, shape, vocabulary, settings.initial, settings.seed)
        identities = {BASE: base_identity(path)} | {name: head_identity(other) for name, other in started_from.items()}
    run_folder = RunFolder(folder / FIT)
    with run_folder.locked() if accelerator.is_main_process else contextlib.nullcontext():
        run = Run(
            *(settings, run_folder, accelerator, target, identities, training, held_out, vocabulary),
            lambda run: Trainee(head, settings, _units(run, settings), target),
        )
        if accelerator.is_main_process:
            run.describe(left_random)
        run.train()


def _units(run: Run, settings: FitSettings) -> Tensor:
    """Typical sizes of the entries of a feature, (k * H,): powers of two; 1 where the head itself norms them."""
    file = run.folder.path / UNITS
    if run.resumed:
        try:
            return load_file(file)[UNITS_KEY]
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(f"cannot read {file}: {error}; remove {run.folder.path}, to start anew") from error
    indices = run.planned[0][0]
    batch = batch_of([run.training[index] for index in indices]).to(run.accelerator.device)
    features = run.read(batch, indices).features.float()
    if settings.norm_before_fc or settings.fc_norm:
        units = features.new_ones(features.shape[1])
    else:
        # The first token of a document often has entries thousands of times as large as any other.
        units = features.abs().median(0).values.clamp(min=torch.finfo(torch.float32).tiny).log2().round().exp2()
    if not bool(units.isfinite().all()):
        raise InputError(
            "the target's hidden states are not numbers already in the first batch of answers: it may overflow in "
            "--dtype " + str(run.target.dtype).removeprefix("torch.")
        )
    if run.accelerator.is_main_process:
        with explained(f"cannot write {file}"):
            save_file({UNITS_KEY: units.cpu()}, file)
    return units
