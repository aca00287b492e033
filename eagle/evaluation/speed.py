"""Speed-up over the baseline by category: ``python -m eagle.evaluation.speed FILE BASELINE``.

By Spec-Bench's categories (Xia et al. 2024), with what it reports: tokens/s of both runs, their ratio, and the mean
number of tokens a round emits, the target's own included. Tokens/s here are all new tokens over all seconds, as in
``stats``; Spec-Bench's script takes the mean over the questions of each one's tokens/s, which is printed below the
table. (That script also counts the baseline's tokens anew with a tokenizer; here they are taken as recorded.)
Where there are Spec-Bench's other tasks, MT-Bench's eight categories are one.

Both runs may be files of answers without info beside them, as EAGLE and Spec-Bench publish them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eagle.data.questions import load_questions
from eagle.errors import InputError
from eagle.evaluation.reading.naming import labels
from eagle.evaluation.reading.pairing import note_other_machine, require_same_questions
from eagle.evaluation.reading.summary import Sums, in_common, summarise
from eagle.evaluation.reading.tables import INTERVALS, Table, estimate, number
from eagle.evaluation.reading.timed import read_timed
from eagle.program import run_program

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
ONE_TASK = "mt_bench"
OVERALL = "overall"


def tasks(sums: Sums) -> Sums:
    """The same with the categories as Spec-Bench groups them."""
    if set(sums.categories) <= {*MT_BENCH, None}:
        return sums
    return replace(
        sums, categories=tuple(ONE_TASK if category in MT_BENCH else category for category in sums.categories)
    )


def speed_table(run: Sums, baseline: Sums) -> Table:
    """A row for each category, and one for all questions.

    Args:
        run: of a run.
        baseline: of the baseline, on the same questions in the same order, see ``in_common``.
    """
    mine, theirs = tasks(run).by_category(), tasks(baseline).by_category()
    rows = []
    for name, (ours, base) in {
        **{category: (mine[category], theirs[category]) for category in mine},
        OVERALL: (run, baseline),
    }.items():
        summary = summarise(ours, base)
        speeds = (summary.figures["tokens_per_second"], summarise(base).figures["tokens_per_second"])
        tau = summary.figures["tau"]
        rows.append(
            [
                name,
                str(summary.questions),
                *(number(None if speed is None else speed.value, 2) for speed in speeds),
                estimate(summary.speed_up, 2, "x"),
                number(None if tau is None else tau.value, 3),
            ]
        )
    head = ["category", "questions", "tokens/s", "baseline tokens/s", "speed-up", "mean accepted"]
    return Table("Speed-up over the baseline", head, rows)


def mean_speed(sums: Sums) -> float | None:
    """Spec-Bench's tokens/s: the mean over questions of a question's tokens over its seconds; None without seconds."""
    tokens, seconds = sums.columns["new tokens"], sums.columns["seconds"]
    return float((tokens / seconds).mean()) if (seconds > 0).all() else None


def speed(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    parse = argparse.ArgumentParser(
        prog="python -m eagle.evaluation.speed",
        description="Speed-up of a run over its baseline, by category and overall.",
        allow_abbrev=False,
    )
    parse.add_argument(
        "file", type=Path, metavar="FILE", help="any file of a run, answers alone, or a folder with one run"
    )
    parse.add_argument("baseline", type=Path, metavar="BASELINE", help="the same of an autoregressive run")
    parse.add_argument("--question-file", type=Path, help="questions whose categories the runs do not tell")
    args = parse.parse_args(argv)
    categories = {}
    if args.question_file is not None:
        categories = {question.question_id: question.category for question in load_questions(args.question_file)}
    runs = [read_timed(file, categories) for file in (args.file, args.baseline)]
    require_same_questions(*runs)
    note_other_machine(*runs)
    mine, theirs = in_common(runs[0].sums, runs[1].sums)
    if not mine.questions:
        raise InputError(f"{args.file} and {args.baseline}: no question is in both, nothing to compare")
    names = labels([(run.files, run.about) for run in runs])
    print(f"{names[0]} over {names[1]}, {len(mine.questions)} questions of both\n")
    print(speed_table(mine, theirs).text())
    print("mean accepted: tokens a round, the target's own included. " + INTERVALS)
    means = mean_speed(mine), mean_speed(theirs)
    if means[0] and means[1]:
        print(
            f"mean over questions of each one's tokens/s, as in Spec-Bench: {means[0]:.2f}, baseline {means[1]:.2f}, "
            f"speed-up {means[0] / means[1]:.2f}x"
        )
    if not runs[1].about.is_baseline:
        print(f"{args.baseline}: not an autoregressive run, going by its settings or name", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(speed, argv)


if __name__ == "__main__":
    sys.exit(main())
