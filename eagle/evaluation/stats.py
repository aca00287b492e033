"""Figures, tables, pictures and a page of finished runs: ``python -m eagle.evaluation.stats PATH [PATH ...]``.

A path is any file of a run, or a folder with runs. A baseline among the runs is found by itself. Files of counts that
the HSD paper's GSM8K code writes, ``*_total_counts.json``, are summed up by themselves, see ``reading.counts``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from eagle.data.questions import Question, load_questions
from eagle.errors import InputError
from eagle.evaluation.reading.counts import END, Counts, counts_data, counts_tables, is_counts, read_all_counts
from eagle.evaluation.reading.report import Comparison, Member, data, notes, read_members, rows, tables
from eagle.evaluation.reading.runs import GAMMA, find_run, require_gamma
from eagle.program import run_program

BY = ("category", "depth", "time")


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    parse = argparse.ArgumentParser(
        prog="python -m eagle.evaluation.stats",
        description="Tokens/s, speed-up and accepted lengths of finished runs, with 95 % intervals over questions.",
        allow_abbrev=False,
    )
    parse.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help=f"a file of a run, a folder with runs, or *_{END}"
    )
    parse.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="run that all others are compared with; default: found among PATHs",
    )
    parse.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="B over A, paired on the questions that both have"
    )
    parse.add_argument("--by", action="append", choices=BY, default=[], help="one more table; may be repeated")
    parse.add_argument("--question-file", type=Path, help="categories that the runs do not tell, texts for --html")
    parse.add_argument("--gamma", type=int, metavar="N", help="only rounds of this draft length" + GAMMA)
    parse.add_argument("--format", choices=FORMATS, default="table", help="of what is printed; default: table")
    parse.add_argument("--plot", type=Path, metavar="DIR", help="draw pictures, as PNG and SVG")
    parse.add_argument("--html", type=Path, metavar="FILE", help="write all of it as one page that needs no network")
    return parse


def as_text(members: Sequence[Member], by: Sequence[str], comparison: Comparison | None) -> str:
    """Aligned tables."""
    blocks = ["\n".join([table.title, "", table.text(), *table.notes]) for table in tables(members, by, comparison)]
    return "\n\n".join([*blocks, "\n".join(notes(members))])


def as_markdown(members: Sequence[Member], by: Sequence[str], comparison: Comparison | None) -> str:
    """Markdown tables."""
    blocks = [
        "\n\n".join([f"**{table.title}**", table.markdown(), *table.notes]) for table in tables(members, by, comparison)
    ]
    return "\n\n".join([*blocks, *notes(members)])


def as_csv(members: Sequence[Member], by: Sequence[str], comparison: Comparison | None) -> str:
    """One table with every figure: a row per run, and per category with ``--by category``."""
    if comparison is not None:
        raise InputError("--format csv holds one table of runs; for --compare take --format json, table or md")
    flat = rows(members, by)
    text = io.StringIO()
    writer = csv.DictWriter(text, flat[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().rstrip("\n")


def as_json(members: Sequence[Member], by: Sequence[str], comparison: Comparison | None) -> str:
    """One object with every figure."""
    return json.dumps(data(members, by, comparison), indent=2, ensure_ascii=False)


FORMATS: dict[str, Callable[[Sequence[Member], Sequence[str], Comparison | None], str]] = {
    "table": as_text,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def stats(argv: Sequence[str] | None) -> None:
    """The whole program: read, sum up, print; then draw and write what was asked for.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser().parse_args(argv)
    pair: list[Path] = args.compare or []
    if not args.paths and not pair:
        raise InputError("name a run or a folder with runs, for instance mt_bench/default")
    require_gamma(args.gamma)
    if any(map(is_counts, args.paths)):
        _show_counts(args)
        return
    if args.gamma is not None and args.baseline is not None:
        raise InputError("--gamma does not go with --baseline: tokens/s cannot be split by rounds")
    if pair and args.format == "csv":
        raise InputError("--format csv holds one table of runs; for --compare take --format json, table or md")
    questions = {question.question_id: question for question in _questions(args.question_file)}
    categories = {question_id: question.category for question_id, question in questions.items()}
    pair = [find_run(path) for path in pair]
    members = read_members([*args.paths, *pair], args.baseline, args.gamma, categories)
    if "category" in args.by and not any(any(member.run.categories) for member in members):
        raise InputError("--by category: the runs do not tell their questions' categories; --question-file FILE does")
    comparison = _comparison(members, pair) if pair else None
    _say_what_is_missing(members, args.by, comparison)
    print(FORMATS[args.format](members, args.by, comparison), flush=True)
    if args.plot is not None:
        # Only here: matplotlib takes longer to load than all of the above.
        from eagle.evaluation.reading.plots import draw, save

        _written(args.plot, lambda: save(draw(members), args.plot))
    if args.html is not None:
        from eagle.evaluation.reading.page import write_page

        _written(args.html, lambda: write_page(args.html, members, comparison, questions))


def _show_counts(args: argparse.Namespace) -> None:
    """What there is to say of files of counts.

    Raises:
        InputError: see ``read_all_counts``; what is of runs only.
    """
    runs = [path for path in args.paths if not is_counts(path)]
    if runs:
        raise InputError(f"{runs[0]} is no file of counts (*_{END}); name runs in a call of their own")
    for name in ("baseline", "compare", "by", "question_file", "plot", "html"):
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} is for runs, not for files of counts (*_{END}); leave it out")
    if args.format == "csv":
        raise InputError("--format csv holds one table of runs; for files of counts take --format json, table or md")
    read: list[Counts] = read_all_counts(args.paths, args.gamma)
    if args.format == "json":
        print(json.dumps({"counts": counts_data(read)}, indent=2, ensure_ascii=False), flush=True)
        return
    markdown = args.format == "md"
    blocks = [
        ("\n\n" if markdown else "\n").join(
            [
                *([f"**{table.title}**", table.markdown()] if markdown else [table.title, "", table.text()]),
                *table.notes,
            ]
        )
        for table in counts_tables(read, args.gamma)
    ]
    print("\n\n".join(blocks), flush=True)


def _questions(file: Path | None) -> list[Question]:
    return [] if file is None else load_questions(file)


def _comparison(members: Sequence[Member], pair: Sequence[Path]) -> Comparison:
    by_file = {member.run.files.answers.resolve(): member for member in members}
    files = [path.resolve() for path in pair]
    absent = [file for file in files if file not in by_file]
    if absent:
        raise InputError(f"--compare: {absent[0]} is an autoregressive run, which --gamma leaves out")
    return Comparison.of(by_file[files[0]], by_file[files[1]])


def _say_what_is_missing(members: Sequence[Member], by: Sequence[str], comparison: Comparison | None) -> None:
    """Why there is no table, or an empty one, where one was asked for."""
    if "depth" in by and not any(member.summary.depths for member in members):
        print("--by depth: there are only autoregressive runs, which draft nothing", file=sys.stderr)
    if "time" in by and not any(member.summary.phases for member in members):
        print("--by time: the rounds that --gamma keeps are not all of a turn, and its time is one", file=sys.stderr)
    if comparison is not None and not comparison.figures:
        print("--compare: on the questions of both, one has no rounds of that draft length", file=sys.stderr)


def _written(place: Path, write: Callable[[], Sequence[Path]]) -> None:
    """Write, and say so where it does not get into what is printed."""
    try:
        files = write()
    except OSError as error:
        raise InputError(f"cannot write to {place}: {error.strerror or error}") from error
    for file in files:
        print(f"written: {file}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(stats, argv)


if __name__ == "__main__":
    sys.exit(main())
