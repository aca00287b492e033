"""Runs on disk: finding them, and reading one into flat arrays over its rounds and questions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagle.errors import InputError
from eagle.evaluation.answering.records import RunFiles
from eagle.evaluation.reading.lines import COUNTS, TIMES, Floats, Ints, parse_answer, parse_info, read_lines
from eagle.evaluation.reading.matching import Matched, match
from eagle.evaluation.reading.naming import About, about

INFO = "_info.jsonl"
RUN = "_run.json"
# For the help of the programs that take --gamma.
GAMMA = " (the root included: with the 10 draft tokens of the HSD paper it is 11)"


@dataclass(frozen=True)
class Run:
    """A run: n questions with all their choices and turns, R rounds in the questions' order.

    Attributes:
        files: where it is.
        about: what it was made with.
        questions: n ids.
        categories: n categories, None where unknown.
        offsets: (n + 1,) int64; the rounds of question i are ``offsets[i]`` to ``offsets[i + 1]``.
        accept_length: (R,) int64, draft tokens accepted, without the target's own.
        draft_length: (R,) int64, tokens on the longest path of the tree, the root included.
        tree_time: (R,) float64, seconds of the target's forward.
        eval_time: (R,) float64, seconds of warping and verification.
        update_time: (R,) float64, seconds of commit and next draft.
        draft_time: (R,) float64, seconds of drafting the round's tree; None if not recorded.
        new_tokens: (n,) int64.
        generate_time: (n,) float64, seconds of the whole generation, prefill included.
        wall_time: (n,) float64, seconds as the answers file has them.
        reset_tree_time: (n,) float64, seconds of prefill, first token and first draft.
        first_draft_time: (n,) float64, seconds of ``draft_time`` that lie in ``reset_tree_time``; None if not recorded.
        skipped: malformed lines in its files.
        unanswered: questions with a turn that could not be answered; they are not among the n.
        doubled: questions with several answers, of which the last is the one read.
        gamma: only rounds of this draft length were kept; None is all.
        rounds_read: rounds before that.
    """

    files: RunFiles
    about: About
    questions: tuple[int | str, ...]
    categories: tuple[str | None, ...]
    offsets: Ints
    accept_length: Ints
    draft_length: Ints
    tree_time: Floats
    eval_time: Floats
    update_time: Floats
    draft_time: Floats | None
    new_tokens: Ints
    generate_time: Floats
    wall_time: Floats
    reset_tree_time: Floats
    first_draft_time: Floats | None
    skipped: int
    unanswered: tuple[int | str, ...]
    doubled: tuple[int | str, ...]
    gamma: int | None
    rounds_read: int

    def per_question(self, of_rounds: NDArray[Any]) -> NDArray[Any]:
        """(n,) sums over each question's rounds of a (R,) array."""
        cumulative = np.concatenate([np.zeros(1, of_rounds.dtype), np.cumsum(of_rounds)])
        return cumulative[self.offsets[1:]] - cumulative[self.offsets[:-1]]

    def with_categories(self, known: Mapping[int | str, str | None]) -> Run:
        """The same with the categories that its files do not tell."""
        categories = (
            category or known.get(question) for question, category in zip(self.questions, self.categories, strict=True)
        )
        return replace(self, categories=tuple(categories))


# ---------------------------------------------------------------------------------------------------------------------
# Finding
# ---------------------------------------------------------------------------------------------------------------------


def find_runs(path: Path) -> list[Path]:
    """The answers files of the runs that a path names.

    Args:
        path: answers, info or run file of a run, or a folder, which is searched with all folders in it; what is only
            a part of a run there is named on standard error and left out.

    Returns:
        Those of a folder by model, temperature and method.

    Raises:
        InputError: nothing there, a folder without runs, or a file without the other one of its run.
    """
    try:
        return _in_folder(path) if path.is_dir() else [_named(path)]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def find_run(path: Path) -> Path:
    """The answers file of the one run that a path names, see ``find_runs``.

    Raises:
        InputError: as ``find_runs``; a folder with several runs.
    """
    found = find_runs(path)
    if len(found) > 1:
        raise InputError(f"{path}: {len(found)} runs are in this folder; name a file of the one that is meant")
    return found[0]


def answers_beside(path: Path) -> Path:
    """The answers file of the run that a file belongs to, by its name alone."""
    for end in (INFO, RUN):
        if path.name.endswith(end):
            return path.with_name(path.name.removesuffix(end) + ".jsonl")
    return path


def _in_folder(folder: Path) -> list[Path]:
    infos = set(folder.rglob(f"*{INFO}"))
    others = set(folder.rglob("*.jsonl")) - infos
    lone = [file for file in others if RunFiles.beside(file).info not in infos and _holds_answers(file)]
    complete = []
    for file in sorted([*infos, *lone]):
        try:
            complete.append(_named(file))
        except InputError as error:
            _say_left_out(error)
    if not complete:
        raise InputError(f"{folder}: no runs there (a run is a file of answers NAME.jsonl and NAME{INFO} beside it)")
    # As they are compared: a temperature together, the baseline first.
    return sorted(complete, key=lambda file: (file.parent, about(RunFiles.beside(file)).order, file.name))


def _holds_answers(file: Path) -> bool:
    """Whether it begins as answers do; folders of runs hold questions, too."""
    try:
        with file.open("rb") as source:
            return b'"choices"' in source.readline(4096)
    except OSError:
        return False


def _say_left_out(error: InputError) -> None:
    print(f"{error}; left out", file=sys.stderr)


def _named(path: Path) -> Path:
    files = RunFiles.beside(answers_beside(path))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    for file in (files.answers, files.info):
        if not file.is_file():
            raise InputError(f"{path}: not a run, since there is no {file.name} beside it")
        if file.stat().st_size == 0:
            raise InputError(f"{file}: the file is empty")
    return files.answers


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs that paths name, each once and in their order.

    What cannot be read as a run is an error where it was named itself; in a folder it is named on standard error and
    left out.

    Args:
        paths: see ``find_runs``.

    Raises:
        InputError: as ``find_runs`` and ``read_run``; a folder of which nothing is left.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        left = 0
        for file in find_runs(path):
            try:
                if file.resolve() not in runs:
                    runs[file.resolve()] = read_run(file)
                left += 1
            except InputError as error:
                if not path.is_dir():
                    raise
                _say_left_out(error)
        if not left:
            raise InputError(f"{path}: none of its runs can be read")
    return list(runs.values())


def read_run(path: Path) -> Run:
    """Read a run; what is malformed or incomplete is named on standard error and left out.

    Args:
        path: any of its files, or a folder with one run.

    Raises:
        InputError: as ``find_run``; no complete question in it.
    """
    files = RunFiles.beside(find_run(path))
    answers, bad_answers = read_lines(files.answers, parse_answer)
    infos, bad_infos = read_lines(files.info, parse_info)
    skipped = bad_answers + bad_infos
    if skipped:
        print(f"{files.answers}: malformed lines skipped: {skipped}", file=sys.stderr)
    matched = match(files, answers, infos)
    if not matched.complete:
        what = (
            "was answered in full" if matched.unanswered else f"with both its answer and its info ({files.info.name})"
        )
        raise InputError(f"{files.answers}: no question {what}")
    return _assembled(files, matched, skipped)


def _assembled(files: RunFiles, matched: Matched, skipped: int) -> Run:
    complete = matched.complete
    infos = [info for pairs in complete.values() for _, info in pairs]
    timed = all("draft_time" in info.rounds for info in infos)
    rounds = {
        key: np.concatenate([info.rounds[key] for info in infos])
        for key in (*COUNTS, *TIMES, *(("draft_time",) if timed else ()))
    }
    in_question = [sum(len(info.rounds["accept_length"]) for _, info in pairs) for pairs in complete.values()]

    def of_questions(name: str) -> Floats:
        return np.array([sum(getattr(info, name) for _, info in pairs) for pairs in complete.values()], np.float64)

    return Run(
        files=files,
        about=about(files),
        questions=tuple(complete),
        categories=tuple(pairs[0][1].category for pairs in complete.values()),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(in_question)]),
        accept_length=rounds["accept_length"],
        draft_length=rounds["draft_length"],
        tree_time=rounds["tree_time"],
        eval_time=rounds["eval_time"],
        update_time=rounds["update_time"],
        draft_time=rounds.get("draft_time"),
        new_tokens=np.array([sum(choice.new_tokens for choice, _ in pairs) for pairs in complete.values()], np.int64),
        generate_time=of_questions("generate_time"),
        wall_time=np.array([sum(choice.wall_time for choice, _ in pairs) for pairs in complete.values()], np.float64),
        reset_tree_time=of_questions("reset_tree_time"),
        first_draft_time=of_questions("first_draft_time") if timed else None,
        skipped=skipped,
        unanswered=matched.unanswered,
        doubled=matched.doubled,
        gamma=None,
        rounds_read=len(rounds["accept_length"]),
    )


def require_gamma(gamma: int | None) -> None:
    """Refuse a draft length at which nothing is drafted; see ``only_rounds``.

    Raises:
        InputError: it is below 2.
    """
    if gamma is not None and gamma < 2:
        raise InputError(f"--gamma must be 2 or more (the root is included), not {gamma}")


def only_rounds(run: Run, gamma: int) -> Run:
    """The same with only the rounds of one draft length.

    Args:
        run: a run.
        gamma: the draft length, the root included.

    Raises:
        InputError: it has none of these.
    """
    kept = run.draft_length == gamma
    if not kept.any():
        there = ", ".join(map(str, np.unique(run.draft_length)))
        raise InputError(f"{run.files.answers}: no round has draft length {gamma}; there are {there or 'no rounds'}")
    counts = run.per_question(kept.astype(np.int64))
    return replace(
        run,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        accept_length=run.accept_length[kept],
        draft_length=run.draft_length[kept],
        tree_time=run.tree_time[kept],
        eval_time=run.eval_time[kept],
        update_time=run.update_time[kept],
        draft_time=None if run.draft_time is None else run.draft_time[kept],
        gamma=gamma,
    )
