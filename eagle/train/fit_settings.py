"""What a training is told to do, checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eagle.errors import InputError
from eagle.identity import INITIAL, Identity
from eagle.train.batches import Document
from eagle.train.initial import TARGET
from eagle.train.losses import ADAPTIVE, LOG, LOSSES, MIX, Loss
from eagle.train.optimizer import MUON, OPTIMIZERS
from eagle.train.settings import ComputingSettings
from eagle.train.vocab import DraftVocabulary

PRECISIONS = ("bf16", "no")
# Settings that count something.
COUNTS = (
    *("drafting_steps", "max_length", "batch_tokens", "accumulation"),
    *("epochs", "steps", "tokens", "held_out_most", "every"),
)
SHARES = ("decay", "acceptance_weight", "warmup", "held_out", "weight_decay")
# Settings that say where things are, and do not shape the weights.
SHAPELESS = ("base_model_path", "out", "device", "also")


@dataclass(frozen=True)
class TrainingSettings(ComputingSettings):
    """What a training does, whatever it trains; the metadata are the help texts of the program."""

    loss: str = field(
        default=MIX,
        metadata={
            "help": "mix: of cross-entropy and total variation (1 - acceptance), see --acceptance-weight; adaptive: "
            "the same with a share of cross-entropy that falls with what is accepted, see --adaptivity; log: -log of "
            "what is accepted"
        },
    )
    acceptance_weight: float = field(
        default=0.0, metadata={"help": "share of total variation in the loss mix; 0 is cross-entropy"}
    )
    adaptivity: float = field(
        default=Loss.adaptivity, metadata={"help": "of the loss adaptive: share exp(-adaptivity * overlap)"}
    )
    max_length: int = field(default=1024, metadata={"help": "tokens of prompt and answer; the rest is cut off"})
    batch_tokens: int = field(default=2048, metadata={"help": "of a batch, prompts included"})
    accumulation: int = field(default=1, metadata={"help": "batches of an optimizer step, on each process"})
    epochs: int = field(default=1, metadata={"help": "passes over the answers"})
    steps: int | None = field(default=None, metadata={"help": "optimizer steps at most"})
    tokens: int | None = field(default=None, metadata={"help": "answer tokens at most, over all epochs"})
    optimizer: str = field(
        default=MUON, metadata={"help": "muon, for the matrices inside the head with AdamW for the rest, or adamw"}
    )
    learning_rate: float = field(default=2.5e-3, metadata={"help": "of AdamW, at its peak"})
    matrix_learning_rate: float = field(default=6e-3, metadata={"help": "of Muon, at its peak"})
    warmup: float = field(default=0.03, metadata={"help": "share of the steps in which the learning rates rise"})
    weight_decay: float = field(default=0.01, metadata={"help": "of matrices; norms have none"})
    clipping: float = field(default=0.5, metadata={"help": "largest norm of a gradient"})
    mixed_precision: str = field(default="bf16", metadata={"help": f"one of {', '.join(PRECISIONS)}"})
    held_out: float = field(default=0.02, metadata={"help": "share of the prompts that is not trained on"})
    held_out_most: int = field(default=100, metadata={"help": "held-out answers that an evaluation looks at, at most"})
    keep_readings: bool = field(
        default=False,
        metadata={
            "help": "keep what the target says of the answers on disk, so that later epochs do not ask it again; "
            "four hidden states a token"
        },
    )
    every: int = field(default=200, metadata={"help": "steps between evaluations, each with a checkpoint"})
    seed: int = field(default=0, metadata={"help": "of the order of the answers, and of random weights"})
    also: tuple[Path, ...] = field(
        default=(),
        metadata={"help": "--out of further answers (generate, given) that are trained on too; none is held out"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in COUNTS:
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
        for name in SHARES:
            if not 0 <= getattr(self, name, 0) <= 1:
                raise InputError(f"--{name.replace('_', '-')} must lie in [0, 1], not {getattr(self, name)}")
        if self.loss not in self.losses:
            raise InputError(f"--loss must be one of {', '.join(self.losses)}, not {self.loss!r}")
        if self.loss in (ADAPTIVE, LOG) and self.acceptance_weight:
            raise InputError(f"--loss {self.loss} has a weight of its own, so there is no --acceptance-weight")
        if not (math.isfinite(self.adaptivity) and self.adaptivity > 0):
            raise InputError(f"--adaptivity must be a finite number above 0, not {self.adaptivity}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"--optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
        for name in ("learning_rate", "matrix_learning_rate", "clipping"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if self.max_length > self.batch_tokens:
            raise InputError(f"--max-length {self.max_length} does not fit into --batch-tokens {self.batch_tokens}")
        if self.mixed_precision not in PRECISIONS:
            raise InputError(f"--mixed-precision must be one of {', '.join(PRECISIONS)}, not {self.mixed_precision!r}")

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of those that there are."""
        return LOSSES

    @property
    def loss_of_rows(self) -> Loss:
        """What is trained."""
        return Loss(self.loss, self.acceptance_weight, self.adaptivity)

    def rate(self, step: int, total: int) -> float:
        """The share of the peak learning rates at a step, counted from 0: a linear rise, half a cosine down to 0."""
        rising = max(1, round(self.warmup * total))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    def shaping(
        self,
        identities: Mapping[str, Identity],
        documents: Sequence[Document],
        vocabulary: DraftVocabulary,
        processes: int,
    ) -> dict[str, Any]:
        """What decides the weights, in the types of YAML; identities: of the models that were loaded, by setting."""
        shown = {name: value for name, value in asdict(self).items() if name not in SHAPELESS} | dict(identities)
        shown |= {name: list(value) for name, value in shown.items() if isinstance(value, tuple)}
        if INITIAL in identities:
            shown["initial"] = "another head"
        told = hashlib.sha256(repr([(document.tokens, document.start) for document in documents]).encode())
        known = hashlib.sha256(vocabulary.d2t.numpy().tobytes())
        digests = {"answers_sha256": told.hexdigest(), "vocabulary_sha256": known.hexdigest()}
        return shown | digests | {"documents": len(documents), "processes": processes}


@dataclass(frozen=True)
class FitSettings(TrainingSettings):
    """What ``fit`` does, which trains a head."""

    initial: str = field(
        default=TARGET,
        metadata={"help": "weights to start from: target (its last layer), random, or a head's folder or hub id"},
    )
    feature_layers: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "hidden states of the target that the head reads, 0 are the embeddings"},
    )
    norm_before_residual: bool = field(default=False, metadata={"help": "the residual is the normalised hidden state"})
    norm_before_fc: bool = field(default=False, metadata={"help": "one norm over the whole feature"})
    fc_norm: bool = field(default=False, metadata={"help": "a norm over each hidden state of a feature"})
    norm_output: bool = field(default=False, metadata={"help": "the next drafting step gets the normalised output"})
    drafting_steps: int = field(default=7, metadata={"help": "of the training-time test"})
    decay: float = field(default=0.8, metadata={"help": "weight of a drafting step's loss, relative to the one before"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_before_fc and self.fc_norm:
            raise InputError("--norm-before-fc and --fc-norm exclude each other")
