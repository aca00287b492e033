"""Speed-up over a baseline by category: ``python -m eagle.evaluation.speed FILE... BASELINE``.

By Spec-Bench's categories (Xia et al. 2024), with what it reports: tokens/s of both runs, their ratio, and the mean
number of tokens a round emits, the target's own included. Where there are Spec-Bench's other tasks, MT-Bench's eight
categories are one. Tokens/s are all new tokens over all seconds, as in ``stats``; ``--arithmetic spec_bench``, or its
own arguments (``--file-path``, ``--base-path``, ``--tokenizer-path``), reckon as its script does, see
``reading/spec_bench.py``.

Runs may be files of answers without info beside them, as EAGLE and Spec-Bench publish them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eagle import assets
from eagle.data.questions import load_questions
from eagle.errors import InputError
from eagle.evaluation.equal import answers_of, read_texts
from eagle.evaluation.reading.naming import labels
from eagle.evaluation.reading.pairing import note_other_machine, require_same_questions
from eagle.evaluation.reading.spec_bench import OVERALL, Speed, mean_speed, recounted, speed_table, speeds, tasks
from eagle.evaluation.reading.summary import Sums, in_common, summarise
from eagle.evaluation.reading.tables import INTERVALS, Table, estimate, number
from eagle.evaluation.reading.timed import TimedRun, read_timed
from eagle.program import run_program

OWN, SPEC_BENCH = ARITHMETICS = ("own", "spec_bench")


def own_table(run: Sums, baseline: Sums) -> Table:
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
        of_both = (summary.figures["tokens_per_second"], summarise(base).figures["tokens_per_second"])
        tau = summary.figures["tau"]
        rows.append(
            [
                name,
                str(summary.questions),
                *(number(None if each is None else each.value, 2) for each in of_both),
                estimate(summary.speed_up, 2, "x"),
                number(None if tau is None else tau.value, 3),
            ]
        )
    head = ["category", "questions", "tokens/s", "baseline tokens/s", "speed-up", "mean accepted"]
    return Table("Speed-up over the baseline", head, rows)


def parser() -> argparse.ArgumentParser:
    """The arguments of the program."""
    parse = argparse.ArgumentParser(
        prog="python -m eagle.evaluation.speed",
        description="Speed-up of runs over a baseline, by category and overall.",
        allow_abbrev=False,
    )
    parse.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="any file of a run, answers alone, or a folder with one run; the last one is the baseline, an "
        "autoregressive run",
    )
    parse.add_argument("--file-path", type=Path, help="FILE, as Spec-Bench's script calls it")
    parse.add_argument("--base-path", type=Path, help="BASELINE, as Spec-Bench's script calls it")
    parse.add_argument(
        "--arithmetic", choices=ARITHMETICS, help="all tokens over all seconds, or Spec-Bench's; that if called its way"
    )
    parse.add_argument(
        "--tokenizer-path",
        help="in Spec-Bench's arithmetic the baseline's tokens are counted anew with this model's tokenizer; without "
        "it they are taken as recorded",
    )
    parse.add_argument(
        "--writing",
        action="store_true",
        help="leave out the seconds in which prompts were read, which no draft shortens",
    )
    parse.add_argument("--question-file", type=Path, help="questions whose categories the runs do not tell")
    parse.add_argument("--html", type=Path, metavar="FILE", help="write a page with a bar for each run and task")
    return parse


def _called(args: argparse.Namespace) -> tuple[list[Path], Path, str]:
    """The runs, the baseline, and the arithmetic that the arguments ask for.

    Raises:
        InputError: no run, or no baseline.
    """
    if args.file_path is not None or args.base_path is not None:
        if args.files or args.file_path is None or args.base_path is None:
            raise InputError("give FILE... BASELINE, or --file-path and --base-path, both")
        return [args.file_path], args.base_path, args.arithmetic or SPEC_BENCH
    if len(args.files) < 2:
        raise InputError("speed compares runs with a baseline: give FILE... BASELINE")
    *runs, baseline = args.files
    return runs, baseline, args.arithmetic or OWN


def speed(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser().parse_args(argv)
    files, base_file, arithmetic = _called(args)
    if args.tokenizer_path is not None and arithmetic == OWN:
        raise InputError("--tokenizer-path is for Spec-Bench's arithmetic (--arithmetic spec_bench)")
    categories = {}
    if args.question_file is not None:
        categories = {question.question_id: question.category for question in load_questions(args.question_file)}
    baseline = read_timed(base_file, categories)
    runs = [read_timed(file, categories) for file in files]
    *names, of_baseline = labels([(run.files, run.about) for run in [*runs, baseline]])
    shown: dict[str, list[Speed]] = {}
    for file, run, name in zip(files, runs, names, strict=True):
        mine, theirs = _both(run, baseline, file, base_file)
        if args.writing:
            mine, theirs = _while_writing(mine, file), _while_writing(theirs, base_file)
        recount = None if args.tokenizer_path is None else _recounted(theirs, base_file, args.tokenizer_path)
        print(f"{name} over {of_baseline}, {len(mine.questions)} questions of both\n")
        shown[name] = speeds(mine, recount or theirs)
        if arithmetic == SPEC_BENCH:
            print(speed_table(shown[name]).text())
            print("tokens/s: means over questions; mean accepted: tokens a round, the target's own included.\n")
        else:
            print(own_table(mine, theirs).text())
            print("mean accepted: tokens a round, the target's own included. " + INTERVALS)
            _print_means(mine, theirs)
    if not baseline.about.is_baseline:
        print(f"{base_file}: not an autoregressive run, going by its settings or name", file=sys.stderr)
    if args.html is not None:
        # Pictures are drawn where its tables come from, which takes a second to import.
        from eagle.evaluation.reading.speed_page import write_speed_page

        try:
            write_speed_page(args.html, of_baseline, shown)
        except OSError as error:
            raise InputError(f"cannot write {args.html}: {error}") from error
        print(args.html)


def _both(run: TimedRun, baseline: TimedRun, file: Path, base_file: Path) -> tuple[Sums, Sums]:
    require_same_questions(run, baseline)
    note_other_machine(run, baseline)
    mine, theirs = in_common(run.sums, baseline.sums)
    if not mine.questions:
        raise InputError(f"{file} and {base_file}: no question is in both, nothing to compare")
    return mine, theirs


def _while_writing(sums: Sums, file: Path) -> Sums:
    writing = sums.while_writing()
    if writing is None:
        raise InputError(f"{file} does not tell how long prompts took to read, so --writing has nothing to leave out")
    return writing


def _recounted(baseline: Sums, file: Path, tokenizer_path: str) -> Sums:
    # Only here torch is needed, which takes seconds to import.
    from eagle.target.base import load_tokenizer

    tokenizer = load_tokenizer(assets.resolve_base(tokenizer_path))
    texts: dict[int | str, list[str]] = {}
    for (question, _), turns in read_texts(answers_of(file)).items():
        texts.setdefault(question, []).extend(turns)
    return recounted(baseline, texts, lambda text: len(tokenizer(text).input_ids))


def _print_means(mine: Sums, theirs: Sums) -> None:
    means = mean_speed(mine), mean_speed(theirs)
    if means[0] and means[1]:
        print(
            f"mean over questions of each one's tokens/s, as in Spec-Bench: {means[0]:.2f}, baseline {means[1]:.2f}, "
            f"speed-up {means[0] / means[1]:.2f}x"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(speed, argv)


if __name__ == "__main__":
    sys.exit(main())
