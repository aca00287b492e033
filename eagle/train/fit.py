"""Training a head on answers of its target."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle import assets
from eagle.drafters.eagle3.config import FLAGS
from eagle.errors import InputError
from eagle.identity import BASE, INITIAL, base_identity, head_identity, unchanged
from eagle.train.batches import batch_of
from eagle.train.fit_settings import FitSettings
from eagle.train.initial import INITIALS, new_head, shape_for
from eagle.train.progress import explained
from eagle.train.trainee import Trainee
from eagle.train.training import Lessons, Run, accelerator_of, carry_out, frozen_target

FIT = "fit"
UNITS, UNITS_KEY = "units.safetensors", "units"


def fit(settings: FitSettings) -> None:
    """Train, or go on training, until the budget is spent.

    Raises:
        InputError: anything about the settings, the files or the model that does not fit.
    """
    accelerator = accelerator_of(settings)
    lessons = Lessons.of(settings, bar=accelerator.is_main_process)
    path = assets.resolve_base(settings.base_model_path)
    started_from = {} if settings.initial in INITIALS else {INITIAL: settings.initial}
    with unchanged(path, *started_from.values()):
        target = frozen_target(settings, path, accelerator)
        flags = {flag: getattr(settings, flag) for flag in FLAGS}
        shape = shape_for(target, lessons.vocabulary.size, settings.feature_layers, flags)
        head, left_random = new_head(target, shape, lessons.vocabulary, settings.initial, settings.seed)
        identities = {BASE: base_identity(path)} | {name: head_identity(other) for name, other in started_from.items()}

    def student(run: Run) -> Trainee:
        return Trainee(head, settings, _units(run, settings), target)

    carry_out(settings, FIT, accelerator, target, identities, lessons, student, left_random)


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
