"""Hierarchy Drafting with the arguments of its own code: ``python -m eagle.evaluation.inference_hierarchy``.

    python -m eagle.evaluation.inference_hierarchy --model-path MODEL --model-id NAME --bench-name spec_bench \\
        --level 5 --guess 7 --previous_tokens 2 --do_WM --do_SM --history_file history.json

Source: Hierarchy Drafting (arXiv 2502.05609) and its code, an evaluation in Spec-Bench's style. It is the drafter
``lookup`` with its databases W, S and L, and answers are laid out and put where they are there. Text is the model's own
at every temperature.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eagle.errors import InputError
from eagle.evaluation.answering.cli import INTERRUPTED, answer_questions
from eagle.evaluation.answering.layouts import SPEC_BENCH
from eagle.program import run_program

DATABASES = {"W": "do_WM", "S": "do_SM", "L": "do_LM"}


def in_spec_bench_style(program: str, what: str) -> argparse.ArgumentParser:
    """The arguments that the evaluations in Spec-Bench's style have in common.

    Args:
        program: name of the module.
        what: questions are answered with.
    """
    parse = argparse.ArgumentParser(
        prog=f"python -m eagle.evaluation.{program}",
        description=f"Answer benchmark questions with {what}. Every other argument of "
        "eagle.evaluation.gen_ea_answer_llama3chat (--device, --seed, --compile, ...) is taken too.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parse.add_argument("--model-path", help="directory or hub id; default: the embedded model")
    parse.add_argument("--model-id", required=True, help="name in the answers")
    parse.add_argument("--bench-name", default="mt_bench", help="the questions, see --bench-name there")
    parse.add_argument("--answer-file", type=Path, help="default: data/<bench-name>/model_answer/<model-id>.jsonl")
    parse.add_argument("--max-new-tokens", type=int, default=1024, help="new tokens a turn")
    parse.add_argument(
        "--do_sample", action="store_true", help="sample at --temperature; without it decoding is greedy"
    )
    parse.add_argument("--temperature", type=float, default=0.7, help="of samples")
    return parse


def in_common(args: argparse.Namespace) -> dict[str, object]:
    """Those arguments as ``gen_ea_answer_llama3chat`` has them."""
    return {
        "--base-model-path": args.model_path,
        "--model-id": args.model_id,
        "--bench-name": args.bench_name,
        "--answer-file": args.answer_file or Path("data") / args.bench_name / "model_answer" / f"{args.model_id}.jsonl",
        "--max-new-token": args.max_new_tokens,
        "--temperature": args.temperature if args.do_sample else 0.0,
        "--format": SPEC_BENCH,
    }


def as_words(passed: Mapping[str, object]) -> list[str]:
    """Arguments and their values, without those that are None."""
    return [str(part) for name, value in passed.items() if value is not None for part in (name, value)]


def parser() -> argparse.ArgumentParser:
    """The arguments of the program."""
    parse = in_spec_bench_style("inference_hierarchy", "Hierarchy Drafting")
    parse.add_argument("--level", type=int, default=3, help="tokens of a candidate, the one it begins behind included")
    parse.add_argument(
        "--window",
        type=int,
        default=0,
        help="guesses in a lookahead row, each of which costs level - 1 nodes to score, and whose n-grams come behind "
        "those of the text in W (10 in the code there, where W holds nothing else)",
    )
    parse.add_argument("--guess", type=int, default=10, help="candidates: guess * (level - 1) nodes below the root")
    parse.add_argument(
        "--previous_tokens", type=int, default=8, help="of a match, at most; in the code there W and S match one token"
    )
    parse.add_argument("--order", default="WSL", help="of the databases: which speaks first of matches of a length")
    for letter, name in DATABASES.items():
        parse.add_argument(
            f"--{name}",
            action="store_true",
            help=f"use {letter}; without any of the three, all that there are (in the code there two of the three do "
            "nothing)",
        )
    parse.add_argument("--history_file", type=Path, help="S: JSON of n-grams, or a file of eagle.lookup build")
    parse.add_argument("--db_file", type=Path, help="L: a file of eagle.lookup build; REST's .idx is not read")
    return parse


def translated(args: argparse.Namespace) -> list[str]:
    """The arguments as ``gen_ea_answer_llama3chat`` has them.

    Raises:
        InputError: a level or a guess that makes no candidate, or a database that is not there.
    """
    if args.level < 2 or args.guess < 1:
        raise InputError(f"--level must be 2 or more and --guess 1 or more, not {args.level} and {args.guess}")
    files = {"S": args.history_file, "L": args.db_file}
    there = "".join(letter for letter in args.order if letter == "W" or files.get(letter) is not None)
    asked = "".join(letter for letter in args.order if getattr(args, DATABASES.get(letter, ""), False))
    order = asked or there
    passed = {
        **in_common(args),
        "--drafter": "lookup",
        "--depth": args.level - 1,
        "--top-k": args.guess,
        "--total-token": 1 + args.guess * (args.level - 1),
        "--longest": args.previous_tokens,
        "--window": args.window or None,
        "--lookahead-level": args.level if args.window else None,
        "--order": order,
        "--model-db": files["S"] if "S" in order else None,
        "--corpus-db": files["L"] if "L" in order else None,
    }
    return as_words(passed)


def inference_hierarchy(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    args, others = parser().parse_known_args(argv)
    answer_questions(baseline=False, argv=[*translated(args), *others])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(inference_hierarchy, argv, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
