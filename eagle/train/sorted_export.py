"""Writing a trained sorted draft for those who use it.

<out>/sorted-draft/          what ``--sorted-model-path`` takes: layers and norm, and the ends that are its own
<out>/sorted-draft/exit-N/   with ends of its own, each exit as an ordinary model, for ``--draft-model-path`` and
                             for any other program that loads models
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eagle import assets
from eagle.drafters.sorted.checkpoint import first_layers, read_config, read_into, write_sorted
from eagle.errors import InputError
from eagle.target.base import load_base, load_tokenizer
from eagle.train.export import WEIGHTS, chosen, replaced
from eagle.train.progress import RunFolder
from eagle.train.settings import StageSettings
from eagle.train.sorted_fit import SORTED

EXPORT_SORTED = "export-sorted"
DRAFT = "sorted-draft"


@dataclass(frozen=True)
class SortedExportSettings(StageSettings):
    """What ``export-sorted`` does; the metadata are the help texts of the program."""

    step: int | None = field(
        default=None, metadata={"help": "checkpoint to export; default: the best on held-out answers"}
    )
    unimproved: bool = field(
        default=False, metadata={"help": "export a draft that is no better than its start on held-out answers, too"}
    )
    weights: str = field(default="bfloat16", metadata={"help": "dtype of the exported weights"})

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise InputError(f"--weights must be one of {', '.join(WEIGHTS)}, not {self.weights!r}")


def export_sorted(settings: SortedExportSettings) -> None:
    """Write the draft, and its exits as models of their own where it has all that these need.

    Raises:
        InputError: no checkpoint, one that training has not improved, or a folder that cannot be written to.
    """
    checkpoint, _ = chosen(RunFolder(settings.folder / SORTED), settings.step, settings.unimproved)
    config, dtype = read_config(checkpoint), getattr(torch, settings.weights)
    path = assets.resolve_base(settings.base_model_path)
    # Whatever the target's dtype, weights leave the draft as wide as they were trained.
    target = load_base(path, dtype=torch.float32, device_map={"": "cpu"})
    model = first_layers(target, config.exits[-1])
    if config.own_ends:
        size, width = target.get_input_embeddings().weight.shape
        model.set_input_embeddings(nn.Embedding(size, width))
        model.set_output_embeddings(nn.Linear(width, size, bias=False))
    draft_ids = read_into(checkpoint, model, config.own_ends)
    folder = settings.folder / DRAFT
    with replaced(folder) as temporary:
        write_sorted(temporary, model, config, draft_ids, dtype)
        if config.own_ends:
            tokenizer = load_tokenizer(path)
            for number, exit_ in enumerate(config.exits, start=1):
                _write_model(temporary / f"exit-{number}", model, exit_, dtype, tokenizer)
    assets.say(f"{folder}: {checkpoint.name}, exits after {', '.join(map(str, config.exits))} layers")


def _write_model(
    folder: Path, model: PreTrainedModel, layers: int, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase
) -> None:
    """An exit as an ordinary model: these layers, the norm and the ends."""
    whole = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    alone = model if layers == whole else first_layers(model, layers)
    # The ends were trained apart, so they are two tensors even where the target's are one.
    alone.config.tie_word_embeddings = False
    try:
        alone.to(dtype).save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)
