"""A tiny target with answers, ready for ``fit``."""

import json
import random
from pathlib import Path

import torch

from eagle.train.answers import ANSWERS, Answer
from eagle.train.fit_settings import FitSettings
from eagle.train.vocab import VOCABULARY, DraftVocabulary
from tests.tiny import VOCAB, make_base

DRAFTED = (0, 2, 3, 4, 6, 7)


def write_answers(folder: Path, answers: list[Answer]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers-00000.jsonl").write_text("".join(json.dumps(vars(answer)) + "\n" for answer in answers))


def some_answers(count: int, seed: int = 0) -> list[Answer]:
    source = random.Random(seed)  # noqa: S311
    return [
        Answer(
            key=f"{number}@1",
            prompt=[source.randrange(VOCAB) for _ in range(source.randint(1, 6))],
            answer=[source.randrange(VOCAB) for _ in range(source.randint(3, 12))],
            temperature=1.0,
            finished=True,
        )
        for number in range(count)
    ]


def ready(folder: Path, architecture: str = "llama", answers: int = 40) -> FitSettings:
    """A folder with a base model, answers and a draft vocabulary, and settings that take a second."""
    base = make_base(architecture, folder / "base")
    out = folder / "training"
    write_answers(out / ANSWERS, some_answers(answers))
    DraftVocabulary.of(torch.tensor(DRAFTED), VOCAB).save(out / VOCABULARY)
    return FitSettings(
        base_model_path=str(base),
        out=out,
        dtype="float32",
        device="cpu",
        drafting_steps=3,
        max_length=16,
        batch_tokens=64,
        epochs=2,
        every=4,
        mixed_precision="no",
        held_out=0.1,
    )
