"""Sorted drafts with the arguments of their own code: ``python -m eagle.evaluation.inference_sd2``.

    python -m eagle.evaluation.inference_sd2 --model-path MODEL --draft-model-path DRAFT --model-id NAME \\
        --submodels 6,9,12 --thresholds 0.5,0.5,0 --total-token 60 --depth 4 --top-k 10

Source: S2D (arXiv 2407.01955) and SD2, its code, an evaluation in Spec-Bench's style. It is the drafter ``sorted``, and
answers are laid out and put where they are there. Text is the model's own at every temperature, where the published
chain drafts the most likely tokens and verifies them as if they had been drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from eagle.drafters.sorted.checkpoint import read_config
from eagle.errors import InputError
from eagle.evaluation.answering.cli import INTERRUPTED, answer_questions
from eagle.evaluation.inference_hierarchy import as_words, in_common, in_spec_bench_style
from eagle.folders import local_folder
from eagle.program import run_program
from eagle.tree.shape import CHAIN, DETERMINISTIC


def parser() -> argparse.ArgumentParser:
    """The arguments of the program."""
    parse = in_spec_bench_style("inference_sd2", "a sorted draft")
    parse.add_argument("--draft-model-path", required=True, help="directory or hub id of the sorted draft")
    parse.add_argument("--submodels", help="layers of the exits to use, as 6,9,12; default: all that the draft has")
    parse.add_argument(
        "--thresholds",
        help="of the exits, as 0.5,0.5,0: a node leaves where its largest probability is above; default: none leaves "
        "before the last",
    )
    parse.add_argument("--total-token", type=int, default=60, help="nodes of the tree, the root included")
    parse.add_argument("--depth", type=int, default=4, help="expansions after the first level")
    parse.add_argument("--top-k", type=int, default=10, help="children of a node, and expanded nodes a level")
    parse.add_argument("--chain", action="store_true", help="draft a single path of depth + 1 tokens, not a tree")
    return parse


def numbers(text: str, kind: type[int] | type[float], name: str) -> list[float]:
    """Numbers with commas between them.

    Raises:
        InputError: something else.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{name} are numbers with commas between them, not {text!r}") from error


def translated(args: argparse.Namespace) -> list[str]:
    """The arguments as ``gen_ea_answer_llama3chat`` has them.

    Raises:
        InputError: exits that the draft does not have, or what are no numbers.
    """
    exits = read_config(local_folder(args.draft_model_path, "the sorted draft")).exits
    asked = list(exits) if args.submodels is None else numbers(args.submodels, int, "--submodels")
    if asked != list(exits) and (len(asked) != 1 or asked[0] not in exits):
        raise InputError(
            f"{args.draft_model_path} has exits after {', '.join(map(str, exits))} layers: give all of them or one, "
            f"not --submodels {args.submodels}"
        )
    alone = exits.index(int(asked[0])) + 1 if len(asked) < len(exits) else None
    tree = (CHAIN, "tokenwise") if args.chain else (DETERMINISTIC, "tokenwise")
    passed = {
        **in_common(args),
        "--drafter": "sorted",
        "--sorted-model-path": args.draft_model_path,
        "--exit": alone,
        "--tree": tree[0],
        "--verifier": tree[1],
        "--total-token": args.total_token,
        "--depth": args.depth,
        "--top-k": args.top_k,
    }
    words = as_words(passed)
    if args.thresholds is None or alone is not None:
        return words
    return [*words, "--exit-thresholds", *map(str, numbers(args.thresholds, float, "--thresholds"))]


def inference_sd2(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    args, others = parser().parse_known_args(argv)
    answer_questions(baseline=False, argv=[*translated(args), *others])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(inference_sd2, argv, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
