"""The draft vocabulary: the tokens that the target's answers use most.

A head that scores a part of the target's vocabulary is smaller and faster, and what it cannot draft is rare.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from eagle import assets
from eagle.errors import InputError
from eagle.target.base import load_config
from eagle.target.target import stop_ids
from eagle.train.answers import ANSWERS, read_answers
from eagle.train.settings import StageSettings

VOCABULARY = "vocab.safetensors"
# The size that published heads have, for targets with at least so many tokens; of smaller ones a share.
LARGE, SIZE_FOR_LARGE, SHARE = 100_000, 32_000, 6


@dataclass(frozen=True)
class VocabSettings(StageSettings):
    """What ``build_vocabulary`` does; the metadata are the help texts of the program."""

    size: int | None = field(
        default=None,
        metadata={
            "help": f"tokens; default: {SIZE_FOR_LARGE}, or of a target with fewer than {LARGE} a {SHARE}th of its own"
        },
    )

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"--size must be 1 or more, not {self.size}")


@dataclass(frozen=True)
class DraftVocabulary:
    """Which tokens of the target a head can draft; draft ids follow the order of the target's.

    Attributes:
        d2t: (draft vocabulary,) int64; the target id of a draft id is ``id + d2t[id]``.
        t2d: (target vocabulary,) bool, whether a target id can be drafted.
    """

    d2t: Tensor
    t2d: Tensor

    @classmethod
    def of(cls, target_ids: Tensor, vocabulary: int) -> DraftVocabulary:
        """That of some tokens.

        Args:
            target_ids: int64, distinct.
            vocabulary: tokens of the target.
        """
        ids = target_ids.sort().values
        return cls(ids - torch.arange(len(ids)), torch.zeros(vocabulary, dtype=torch.bool).index_fill(0, ids, True))

    @property
    def size(self) -> int:
        """Tokens of the draft vocabulary."""
        return len(self.d2t)

    @property
    def target_ids(self) -> Tensor:
        """(draft vocabulary,) int64, increasing: the target id of each draft id."""
        return self.d2t + torch.arange(self.size)

    def save(self, file: Path) -> None:
        """Write safetensors.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")
            save_file({"d2t": self.d2t, "t2d": self.t2d}, temporary)
            temporary.replace(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {file}: {error}") from error

    @classmethod
    def load(cls, file: Path) -> DraftVocabulary:
        """Read what ``save`` wrote.

        Raises:
            InputError: no such file, or its tensors are no such map.
        """
        try:
            tensors = load_file(file)
            vocabulary = cls(tensors["d2t"], tensors["t2d"])
        except FileNotFoundError:
            raise InputError(f"there is no {file}; make it with: python -m eagle.train vocab") from None
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"cannot read the draft vocabulary {file}: {error}") from error
        if not torch.equal(vocabulary.t2d.nonzero()[:, 0], vocabulary.target_ids):
            raise InputError(f"{file}: 'd2t' maps to other tokens than 't2d' marks")
        return vocabulary


def default_size(vocabulary: int) -> int:
    """Tokens of the draft vocabulary for a target with so many."""
    return SIZE_FOR_LARGE if vocabulary >= LARGE else max(1, vocabulary // SHARE)


def count_tokens(answers: Iterable[list[int]], vocabulary: int) -> Tensor:
    """How often each target id occurs, (vocabulary,) int64.

    Raises:
        InputError: an id outside the vocabulary.
    """
    counts = torch.bincount(torch.tensor(list(chain.from_iterable(answers)), dtype=torch.int64), minlength=vocabulary)
    if len(counts) > vocabulary:
        raise InputError(
            f"an answer holds the token {len(counts) - 1}, but the target has {vocabulary:,} tokens: the answers are "
            "another model's"
        )
    return counts


def most_frequent(counts: Tensor, size: int, always: Iterable[int]) -> DraftVocabulary:
    """The ``size`` most frequent tokens; of equally frequent or unused ones those with lower ids.

    Args:
        counts: (target vocabulary,) int64.
        size: of the draft vocabulary.
        always: ids that come before all others.

    Raises:
        InputError: a size that the target's vocabulary cannot give.
    """
    vocabulary = len(counts)
    if not 1 <= size <= vocabulary:
        raise InputError(f"a draft vocabulary of {size:,} tokens: it must be between 1 and the target's {vocabulary:,}")
    ranked = counts.clone()
    ranked[[token for token in always if token < vocabulary]] = torch.iinfo(torch.int64).max
    return DraftVocabulary.of(ranked.sort(descending=True, stable=True).indices[:size], vocabulary)


def build_vocabulary(settings: VocabSettings) -> DraftVocabulary:
    """Count the tokens of the answers, write ``vocab.safetensors``, and say what it covers.

    Raises:
        InputError: anything about the settings, the answers or the target that does not fit.
    """
    out = settings.folder
    size, ends = _target_facts(assets.resolve_base(settings.base_model_path))
    answers = read_answers(out / ANSWERS, bar=True)
    counts = count_tokens((answer.answer for answer in answers), size)
    vocabulary = most_frequent(counts, default_size(size) if settings.size is None else settings.size, ends)
    vocabulary.save(out / VOCABULARY)
    covered = int(counts[vocabulary.t2d].sum()) / int(counts.sum())
    assets.say(
        f"{out / VOCABULARY}: {vocabulary.size:,} of {size:,} tokens, which are {covered:.2%} of the "
        f"{int(counts.sum()):,} tokens of {len(answers):,} answers"
    )
    return vocabulary


def _target_facts(path: str) -> tuple[int, frozenset[int]]:
    """Tokens of a model, and those that end its texts, without loading its weights."""
    config = load_config(path)
    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError:
        # Older checkpoints have none.
        generation = None
    text = config.get_text_config(decoder=True)
    return int(text.vocab_size), stop_ids(generation, text)
