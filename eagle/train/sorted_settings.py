"""What ``sorted`` is told to do, checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from eagle.errors import InputError
from eagle.train.fit_settings import TrainingSettings
from eagle.train.losses import ADAPTIVE, LOG, MIX, Loss

SOFT, HARD = "soft", "hard"


@dataclass(frozen=True)
class SortedSettings(TrainingSettings):
    """What ``sorted`` does, which trains the target's first layers to draft; the metadata are the help texts."""

    layers: int = field(default=3, metadata={"help": "of the target, from the first on"})
    exits: tuple[int, ...] = field(default=(1, 2, 3), metadata={"help": "after how many of these layers"})
    exit_weights: tuple[float, ...] | None = field(
        default=None, metadata={"help": "of the exits' losses; default: all alike"}
    )
    only_last: bool = field(
        default=False, metadata={"help": "train the last exit alone (SFT); the others are measured"}
    )
    freeze_ends: bool = field(
        default=True, metadata={"help": "embeddings and output layer stay the target's, and are not stored"}
    )
    loss: str = field(
        default=SOFT,
        metadata={
            "help": "soft: cross-entropy with the target's own laws, with a share of total variation, see "
            "--acceptance-weight; adaptive and log: as of fit; hard: cross-entropy with the answers' tokens (SoFT)"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = sorted(set(self.exits))
        if not self.exits or list(self.exits) != rising or rising[0] < 1 or rising[-1] != self.layers:
            raise InputError(
                f"--exits must be ascending numbers of layers, the last one all {self.layers} (--layers), not "
                f"{' '.join(map(str, self.exits)) or 'none'}"
            )
        if self.exit_weights is not None and (
            len(self.exit_weights) != len(self.exits) or min(self.exit_weights) < 0 or sum(self.exit_weights) <= 0
        ):
            raise InputError(f"--exit-weights must be {len(self.exits)} numbers, none below 0 and not all 0")
        if self.only_last and self.exit_weights is not None:
            raise InputError("--only-last trains one exit, so there are no --exit-weights")

    @property
    def losses(self) -> tuple[str, ...]:
        """See ``TrainingSettings.losses``."""
        return (SOFT, ADAPTIVE, LOG, HARD)

    @property
    def loss_of_rows(self) -> Loss:
        """See ``TrainingSettings.loss_of_rows``."""
        kind = self.loss if self.loss in (ADAPTIVE, LOG) else MIX
        return Loss(kind, self.acceptance_weight if self.loss == SOFT else 0.0, self.adaptivity)

    @property
    def weights(self) -> list[float]:
        """Of the exits' losses, of sum 1."""
        given = self.exit_weights or ([1.0] * len(self.exits))
        chosen = [0.0] * (len(given) - 1) + [1.0] if self.only_last else list(given)
        return [weight / sum(chosen) for weight in chosen]
