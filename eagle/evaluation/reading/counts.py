"""Counts that the HSD paper's GSM8K code publishes: ``*_total_counts.json``, one file a method.

Layout, as that code writes it (ZhouYuxuanYX/Hierarchical-Speculative-Decoding, ``transformers/generation/utils.py``
and ``chain-of-thought-hub/gsm8k/eval_speculative_decoding_llm.py``; read from the code, no such file was at hand): an
object of lists with an entry for each question,

- ``sample_length``: of each round the tokens it emitted; what was accepted is one less, the target's own. A round of
  its NaiveHSD goes on with single drafts, whose tokens are counted in, too.
- ``draft_eval``: of each round the tokens drafted, the root *not* included; of NaiveHSD with the single drafts, so that
  --gamma leaves out its rounds that went on.
- ``time``: seconds of the generation. It is written negative, start less end; its size is taken.

and others that nobody needs here. A bare histogram is read as well, which is assumed, not known of anybody: an object
``{"<accepted draft tokens>": rounds}`` or a list ``[rounds that accepted 0, 1, ...]``. Either may be the value of
``total_counts`` in an object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagle.data.jsonl import parsed
from eagle.errors import InputError
from eagle.evaluation.reading.lines import LONGEST, Floats, Ints
from eagle.evaluation.reading.summary import Summary, Sums, summarise
from eagle.evaluation.reading.tables import INTERVALS, Table, estimate

END = "total_counts.json"
WRAPPER = "total_counts"
SHOWN = ("accepted_per_round", "tau", "tokens_per_second")
# More rounds than anybody decodes; sums stay exact in float64.
MOST = 2**40


@dataclass(frozen=True)
class Counts:
    """The counts of one method.

    Attributes:
        label: short; the file's name without its end.
        file: where they are from.
        questions: how many; None where only a histogram is known.
        accepted: (L + 1,) int64, rounds that accepted 0, 1, ... L draft tokens.
        summary: figures of these rounds, with intervals over questions where those are known.
        rounds_read: rounds before those of other draft lengths were left out.
    """

    label: str
    file: Path
    questions: int | None
    accepted: Ints
    summary: Summary
    rounds_read: int

    @property
    def shares(self) -> Floats:
        """(L + 1,) float64: the distribution of accepted draft tokens a round."""
        return self.accepted / self.accepted.sum()


def is_counts(path: Path) -> bool:
    """Whether a file is one of these, by its name."""
    return path.name.endswith(END)


def read_all_counts(files: Sequence[Path], gamma: int | None = None) -> list[Counts]:
    """Read files, each once, under labels that tell them apart; see ``read_counts``."""
    read = [read_counts(file, gamma) for file in dict.fromkeys(files)]
    names = [counts.label for counts in read]
    return [
        Counts(
            counts.label if names.count(counts.label) == 1 else str(counts.file),
            *(counts.file, counts.questions, counts.accepted, counts.summary, counts.rounds_read),
        )
        for counts in read
    ]


def read_counts(file: Path, gamma: int | None = None) -> Counts:
    """Read a file of counts.

    Args:
        file: see the top of this module.
        gamma: only rounds of this draft length, the root included as everywhere here: published as gamma - 1.

    Raises:
        InputError: it cannot be read, has another layout, or has no such rounds.
    """
    try:
        held = parsed(file.read_bytes())
        if isinstance(held, dict) and WRAPPER in held:
            held = held[WRAPPER]
        if isinstance(held, dict) and "sample_length" in held:
            return _of_questions(file, held, gamma)
        accepted = _histogram(held)
        if gamma is not None:
            raise ValueError("a histogram does not tell how long drafts were; leave out --gamma")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: no counts of the published code: {error}") from None
    rounds = np.array([accepted.sum()])
    tokens = np.array([(accepted * np.arange(len(accepted))).sum()])
    return _counts(file, None, accepted, {"rounds": rounds, "accepted": tokens}, int(rounds[0]))


def _of_questions(file: Path, held: Mapping[str, Any], gamma: int | None) -> Counts:
    """The published layout."""
    emitted, drafted = _rounds(held, "sample_length", 1), _rounds(held, "draft_eval", 0)
    if list(map(len, emitted)) != list(map(len, drafted)):
        raise ValueError("'sample_length' and 'draft_eval' have different numbers of rounds")
    rounds_read = sum(map(len, emitted))
    tokens = np.array([lengths.sum() for lengths in emitted])
    if gamma is not None:
        there = sorted({int(length) for lengths in drafted for length in lengths})
        emitted = [lengths[of == gamma - 1] for lengths, of in zip(emitted, drafted, strict=True)]
        if rounds_read and not any(map(len, emitted)):
            there_too = ", ".join(str(length + 1) for length in there)
            raise ValueError(f"no round has draft length {gamma}, the root included; there are {there_too}")
    columns: dict[str, Ints | Floats] = {
        "rounds": np.array(list(map(len, emitted))),
        "accepted": np.array([(lengths - 1).sum() for lengths in emitted]),
    }
    if "time" in held and gamma is None:
        # What a question took cannot be split by its rounds.
        columns |= {"new tokens": tokens, "seconds": _seconds(held["time"], len(emitted))}
    lengths = np.concatenate(emitted) if emitted else np.empty(0, np.int64)
    return _counts(file, len(emitted), np.bincount(lengths - 1) if len(lengths) else lengths, columns, rounds_read)


def _counts(
    file: Path, questions: int | None, accepted: Ints, columns: Mapping[str, Ints | Floats], rounds_read: int
) -> Counts:
    if not accepted.sum():
        raise InputError(f"{file}: no rounds of drafting in it; name the counts of a speculative method")
    columns = {**columns, "accepted and own": columns["accepted"] + columns["rounds"]}
    units = len(columns["rounds"])
    sums = Sums(
        questions=tuple(range(units)),
        categories=(None,) * units,
        columns={name: column.astype(np.float64) for name, column in columns.items()},
        at_least=np.zeros((units, 0)),
        could=np.zeros((units, 0)),
        phases={},
    )
    label = file.name.removesuffix(END).rstrip("_") or file.name
    return Counts(label, file, questions, accepted, summarise(sums), rounds_read)


def _rounds(held: Mapping[str, Any], key: str, least: int) -> list[Ints]:
    """For each question the (R,) int64 of its rounds."""
    questions = held.get(key)
    if not isinstance(questions, list):
        raise ValueError(f"'{key}' is not a list with an entry for each question")
    if key == "sample_length" and questions and all(_is_whole(length) for length in questions):
        raise ValueError(
            "'sample_length' holds one length a question, as of autoregressive decoding, which has no rounds"
        )
    read = []
    for place, rounds in enumerate(questions):
        where = f"'{key}' of question {place}"
        if not isinstance(rounds, list):
            raise ValueError(f"{where} is not a list with a number for each round")
        if not all(_is_whole(length) and least <= length <= LONGEST for length in rounds):
            raise ValueError(f"{where} holds something other than whole numbers from {least} to {LONGEST}")
        read.append(np.array(rounds, np.int64))
    return read


def _seconds(times: object, questions: int) -> Floats:
    """(questions,) float64."""
    if not isinstance(times, list) or len(times) != questions:
        raise ValueError(f"'time' is not a list with the seconds of each of its {questions} questions")
    if not all(isinstance(time, int | float) and not isinstance(time, bool) for time in times):
        raise ValueError("'time' holds something other than numbers")
    if not all(abs(time) < MOST for time in times):
        raise ValueError("'time' holds what is no time")
    return np.abs(np.array(times, np.float64))


def _histogram(held: object) -> Ints:
    """(L + 1,) int64: rounds by accepted draft tokens."""
    if isinstance(held, list):
        pairs = dict(enumerate(held))
    elif isinstance(held, dict) and held and all(key.isascii() and key.isdecimal() for key in held):
        pairs = {int(key): rounds for key, rounds in held.items()}
        if len(pairs) < len(held):
            raise ValueError("a number of accepted tokens occurs twice")
    else:
        raise ValueError("neither an object with 'sample_length' and 'draft_eval' nor a histogram of accepted tokens")
    if max(pairs, default=0) > LONGEST:
        raise ValueError(f"more than {LONGEST} tokens accepted in a round")
    if not all(_is_whole(rounds) and 0 <= rounds <= MOST for rounds in pairs.values()):
        raise ValueError("a number of rounds is not a whole number of 0 or more")
    accepted = np.zeros(max(pairs, default=0) + 1, np.int64)
    accepted[list(pairs)] = list(pairs.values())
    # Lengths that never occurred, at the end, say nothing.
    return accepted[: int(np.flatnonzero(accepted).max(initial=0)) + 1]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------------------------------


def counts_tables(read: Sequence[Counts], gamma: int | None = None) -> list[Table]:
    """Figures of each file, and how many rounds accepted how many draft tokens.

    Args:
        read: the files.
        gamma: what they were read with.
    """
    timed = any(counts.summary.figures["tokens_per_second"] for counts in read)
    rows = []
    for counts in read:
        figures = counts.summary.figures
        rows.append(
            [
                *(counts.label, "-" if counts.questions is None else str(counts.questions), str(counts.summary.rounds)),
                *(estimate(figures["accepted_per_round"], 3), estimate(figures["tau"], 3)),
                *([estimate(figures["tokens_per_second"], 2)] if timed else []),
            ]
        )
    said = [INTERVALS, "BE: accepted draft tokens a round and the target's own."]
    if gamma is not None:
        kept = "; ".join(f"{counts.label} {counts.summary.rounds} of {counts.rounds_read}" for counts in read)
        said.append(
            f"Only rounds of draft length {gamma}, the root and {gamma - 1} draft tokens (rounds kept: {kept})."
        )
    head = ["file", "questions", "rounds", "accepted/round", "BE", *(["DS, tokens/s"] if timed else [])]
    longest = max(len(counts.accepted) for counts in read)
    shares = [[f"{share:.3f}" for share in counts.shares] for counts in read]
    return [
        Table("Published counts", head, rows, said),
        Table(
            "Share of rounds that accepted so many draft tokens",
            ["file", *map(str, range(longest))],
            [
                [counts.label, *share, *["-"] * (longest - len(share))]
                for counts, share in zip(read, shares, strict=True)
            ],
        ),
    ]


def counts_data(read: Sequence[Counts]) -> list[dict[str, Any]]:
    """The same as what JSON holds, an object a file; figures as ``value``, ``low``, ``high``, each None if unknown."""
    return [
        {
            "file": str(counts.file),
            "questions": counts.questions,
            "rounds": counts.summary.rounds,
            "rounds_read": counts.rounds_read,
            **{name: _figure(counts.summary, name) for name in SHOWN},
            "accepted": counts.accepted.tolist(),
        }
        for counts in read
    ]


def _figure(summary: Summary, name: str) -> dict[str, float | None]:
    figure = summary.figures[name]
    ends = {"value": None, "low": None, "high": None} if figure is None else vars(figure)
    return {end: None if value is None or math.isnan(value) else value for end, value in ends.items()}
