"""Training a sorted draft: the target's first layers, every exit of which learns to say what the target says.

Source: Sorted fine-tuning (arXiv 2407.01955), the mean of the exits' cross-entropies with the answers' tokens; here
with the target's own laws, unless hard labels are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eagle import assets
from eagle.devices import wide_dtype
from eagle.drafters.sorted.checkpoint import SortedConfig, first_layers, read_into, write_sorted
from eagle.drafters.sorted.model import SortedModel
from eagle.identity import BASE, base_identity, unchanged
from eagle.target.target import Target, selected
from eagle.train.batches import Batch, Document
from eagle.train.features import PACKED, Reading, packed_masks
from eagle.train.losses import judge
from eagle.train.sorted_settings import HARD, SortedSettings
from eagle.train.student import Student
from eagle.train.training import Lessons, accelerator_of, carry_out, frozen_target

SORTED = "sorted"


class SortedStudent(Student):
    """A sorted draft in training.

    Args:
        target: whose first layers it is.
        settings: of the run.
        draft_ids: (D,) int64 target ids.
    """

    draft_ids: Tensor

    def __init__(self, target: Target, settings: SortedSettings, draft_ids: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.model = trainable(target.model, settings)
        self.register_buffer("draft_ids", draft_ids.to(target.device), persistent=False)
        self._config = SortedConfig.for_target(target, settings.exits, len(draft_ids), not settings.freeze_ends)
        self._windows = set(target.windows)
        self.model.set_attn_implementation(PACKED)

    @property
    def columns(self) -> int:
        """See ``Student.columns``: exits."""
        return len(self.settings.exits)

    @property
    def measure(self) -> str:
        """See ``Student.measure``."""
        return "overlap with the target, the mean of the exits"

    def rows_of(self, documents: Sequence[Document]) -> list[int]:
        """See ``Student.rows_of``."""
        return [sum(document.rows for document in documents)] * self.columns

    def write(self, folder: Path) -> None:
        """See ``Student.write``."""
        write_sorted(folder, self.model, self._config, self.draft_ids, torch.float32)

    def read(self, folder: Path) -> None:
        """See ``Student.read``."""
        read_into(folder, self.model, self._config.own_ends)

    def forward(self, batch: Batch, reading: Reading, counts: list[int]) -> tuple[Tensor, Tensor]:
        """See ``Student.forward``."""
        narrow = self.settings.mixed_precision == "bf16"
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=narrow):
            return self._forward(batch, reading, counts)

    def _forward(self, batch: Batch, reading: Reading, counts: list[int]) -> tuple[Tensor, Tensor]:
        rows, count = batch.rows + 1, self.columns
        outputs = torch.cat([states[rows] for states in self._exits(batch)])
        # What is measured on held-out answers is always how near it is to the target.
        hard = self.settings.loss == HARD and torch.is_grad_enabled()
        laws = self._of_tokens(batch.tokens[rows + 1], reading) if hard else reading
        scale = [weight / max(1, number) for weight, number in zip(self.settings.weights, counts, strict=True)]
        judged = judge(
            outputs,
            self.model.get_output_embeddings().weight[self.draft_ids],
            laws,
            torch.arange(len(rows), device=rows.device).repeat(count),
            torch.cat([reading.law.new_full((len(rows),), each) for each in scale]),
            self.settings.loss_of_rows,
        )
        wide = wide_dtype(judged.losses.device)
        losses, hits, overlaps = (
            values.to(wide).view(count, -1).sum(-1) for values in (judged.losses, judged.hits, judged.overlaps)
        )
        sizes = losses.new_full((count,), len(rows))
        return judged.total, torch.stack([losses, hits, overlaps, overlaps / count, sizes])

    def _exits(self, batch: Batch) -> list[Tensor]:
        """(n, H) of each exit, what the output layer reads there."""
        base, exits = self.model.base_model, self.settings.exits
        output = base(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            attention_mask=packed_masks(self._windows, batch.lengths),
            use_cache=False,
            output_hidden_states=list(exits[:-1]) or None,
        )
        early = selected(output.hidden_states, exits[:-1], exits[-1]) if exits[:-1] else []
        return [*(base.norm(states)[0] for states in early), output.last_hidden_state[0]]

    def _of_tokens(self, tokens: Tensor, reading: Reading) -> Reading:
        """The laws that have all their mass on these tokens, none on one that is not drafted."""
        column = torch.searchsorted(self.draft_ids, tokens).clamp(max=len(self.draft_ids) - 1)
        drafted = self.draft_ids[column] == tokens
        law = torch.zeros_like(reading.law).scatter_(1, column[:, None], drafted[:, None].to(reading.law.dtype))
        return replace(reading, law=law)


def trainable(target: PreTrainedModel, settings: SortedSettings) -> PreTrainedModel:
    """The target's first layers in float32, which want gradients; its ends, in float32 too, only if they are to be the
    draft's own."""
    model = first_layers(target, settings.layers, torch.float32)
    embedding, output = (
        end.weight.detach().float() for end in (target.get_input_embeddings(), target.get_output_embeddings())
    )
    if not settings.freeze_ends:
        embedding, output = embedding.clone(), output.clone()
    own = nn.Linear(output.shape[1], output.shape[0], bias=False, device="meta")
    own.weight = nn.Parameter(output, requires_grad=not settings.freeze_ends)
    model.set_input_embeddings(nn.Embedding.from_pretrained(embedding, freeze=settings.freeze_ends))
    model.set_output_embeddings(own)
    return model


def fit_sorted(settings: SortedSettings) -> None:
    """Train, or go on training, until the budget is spent.

    Raises:
        InputError: anything about the settings, the files or the model that does not fit.
    """
    accelerator = accelerator_of(settings)
    lessons = Lessons.of(settings, bar=accelerator.is_main_process)
    path = assets.resolve_base(settings.base_model_path)
    with unchanged(path):
        target = frozen_target(settings, path, accelerator)
        identities = {BASE: base_identity(path)}
    draft_ids = lessons.vocabulary.target_ids
    # Refused before anything is read, not when it is to draft.
    SortedModel(first_layers(target.model, settings.layers), settings.exits, draft_ids.to(target.device))
    carry_out(
        settings,
        SORTED,
        accelerator,
        target,
        identities,
        lessons,
        lambda run: SortedStudent(target, settings, draft_ids),
    )
