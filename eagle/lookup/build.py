"""Building a database: texts tokenized piece by piece, which is what an interrupted run keeps, then sorted."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eagle import assets
from eagle.drafters.lookup.corpus import write_corpus
from eagle.drafters.vocabulary import vocabulary_sha256
from eagle.errors import InputError
from eagle.lookup.sources import Piece, pieces

# Texts tokenized at once, and kept as one file until all are there.
AT_ONCE = 5000
PLAN = "plan.json"


@dataclass(frozen=True)
class Built:
    """A database.

    Attributes:
        file: where it is.
        texts: in it.
        tokens: of all of them.
    """

    file: Path
    texts: int
    tokens: int


def build(file: Path, sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> Built:
    """Make a database of sources, or go on with one whose making was interrupted.

    Args:
        file: to be written.
        sources: see ``sources.pieces``.
        tokenizer: of the model that will draft with it.
        most: tokens, behind which no text is taken.

    Raises:
        InputError: a source that cannot be read, no text in them, or a file that cannot be written.
    """
    parts = file.with_name(f".{file.name}.parts")
    plan = {"sources": [_stamped(source) for source in sources], "tokenizer": vocabulary_sha256(tokenizer.get_vocab())}
    try:
        _begin(parts, plan)
        total = 0
        texts = itertools.chain.from_iterable(map(pieces, sources))
        with tqdm(desc="tokenizing", unit="token", unit_scale=True, dynamic_ncols=True) as bar:
            for number in itertools.count():
                some = list(itertools.islice(texts, AT_ONCE))
                if not some or (most is not None and total >= most):
                    break
                part = parts / f"{number:06}.npz"
                if not part.is_file():
                    _keep(part, _tokenized(some, tokenizer))
                new = int(np.load(part)["lengths"].sum())
                total += new
                bar.update(new)
        kept = list(_cut(_kept(parts), most))
        built = Built(file, len(kept), sum(map(len, kept)))
        assets.say(f"{built.texts:,} texts, {built.tokens:,} tokens; sorting")
        write_corpus(file, kept, tokenizer)
        shutil.rmtree(parts)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}") from error
    return built


def _stamped(source: str) -> list[Any]:
    path = Path(source)
    return [source, path.stat().st_size, path.stat().st_mtime] if path.is_file() else [source]


def _begin(parts: Path, plan: dict[str, Any]) -> None:
    """Leave what another run kept, if it was to make the same of the same."""
    stored = parts / PLAN
    if stored.is_file() and json.loads(stored.read_text()) != plan:
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(plan))


def _tokenized(texts: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    strings = [text for text in texts if isinstance(text, str)]
    ids = iter(tokenizer(strings, add_special_tokens=False, verbose=False)["input_ids"] if strings else [])
    found = (next(ids) if isinstance(text, str) else text for text in texts)
    return [each for each in found if each]


def _keep(part: Path, texts: Sequence[Sequence[int]]) -> None:
    temporary = part.with_name(f"part-{part.name}")
    tokens = np.fromiter(itertools.chain.from_iterable(texts), np.uint32)
    np.savez(temporary, tokens=tokens, lengths=np.array([len(text) for text in texts], np.int64))
    temporary.replace(part)


def _kept(parts: Path) -> Iterator[NDArray[Any]]:
    for part in sorted(parts.glob("[0-9]*.npz")):
        with np.load(part) as kept:
            yield from np.split(kept["tokens"], np.cumsum(kept["lengths"])[:-1])


def _cut(texts: Iterator[NDArray[Any]], most: int | None) -> Iterator[NDArray[Any]]:
    total = 0
    for text in texts:
        if most is not None and total >= most:
            return
        total += len(text)
        yield text
