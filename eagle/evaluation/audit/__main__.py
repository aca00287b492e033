"""Whether a method's texts have the model's own law, on real prompts: ``python -m eagle.evaluation.audit``.

Behind every prompt the method draws many short texts, and so does the stock model by itself. Permutation tests look for
a difference, in single tokens and in whole texts (see ``losslessness``), and their p-values are corrected for their
number. The exit status is 0 if no difference was found, 1 if one was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from eagle.chat_template import add_template_argument, template_arguments
from eagle.data.questions import load_questions, spread
from eagle.decoding.method import Method
from eagle.errors import InputError
from eagle.evaluation.answering.arguments import add_hybrid_arguments, hybrid_arguments
from eagle.evaluation.answering.bench import add_bench_arguments, question_file
from eagle.evaluation.audit.losslessness import REFERENCE, Finding, PromptResult, Settings, audited, findings
from eagle.evaluation.reading.tables import Table
from eagle.model.loading import add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.tree.warping import Warper

LEAST_DRAWS = 20


def parser() -> argparse.ArgumentParser:
    """The arguments of the program."""
    parse = argparse.ArgumentParser(
        description="Test whether a method's texts have the law of plain sampling. "
        "Exit status 0: no difference found; 1: a difference.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    model = parse.add_argument_group("model")
    add_pair_arguments(model)
    # In bfloat16 a token's logits depend on how many tokens are scored at once, which enough draws would show.
    model.set_defaults(dtype="float32")
    method = parse.add_argument_group("method")
    method.add_argument(
        "--method",
        default="hsd",
        help="hsd, eagle3, or [DRAFTER/]TREE:RULE, for instance chain:hsd_published or draft/paths:hsd",
    )
    method.add_argument("--total-token", type=int, help="nodes of the tree, the root included; default: as for answers")
    method.add_argument("--depth", type=int, help="expansions after the first level")
    method.add_argument("--top-k", type=int, help="children of an expanded node")
    method.add_argument("--paths", type=int, help="i.i.d. chains of the trees paths")
    add_hybrid_arguments(method)
    sampling = parse.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=1.0, help="above 0")
    sampling.add_argument("--top_p", "--top-p", type=float, default=1.0, help="nucleus mass; 0 and 1 are off")
    sampling.add_argument("--sample-top-k", type=int, default=0, help="most likely tokens kept; 0 is off")
    sampling.add_argument("--seed", type=int, default=0, help="of everything random")
    prompts = parse.add_argument_group("prompts")
    add_bench_arguments(prompts)
    prompts.add_argument("--question-begin", type=int, help="first question, counted from 0")
    prompts.add_argument("--question-end", type=int, help="question to stop before")
    prompts.add_argument("--prompts", type=int, default=4, help="first turns, evenly spread over those questions")
    add_template_argument(prompts)
    test = parse.add_argument_group("test")
    test.add_argument(
        "--draws", type=int, default=2000, help=f"texts behind each prompt; the stock model draws {REFERENCE}x as many"
    )
    test.add_argument("--tokens", type=int, default=4, help="new tokens of each text that are compared")
    test.add_argument("--alpha", type=float, default=0.01, help="chance of finding a difference where there is none")
    test.add_argument("--format", choices=("table", "json"), default="table")
    return parse


def audit(argv: Sequence[str] | None) -> bool:
    """The whole program; returns whether a difference was found.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser().parse_args(argv)
    settings = _settings(args)
    questions = spread(load_questions(question_file(args), args.question_begin, args.question_end), args.prompts)
    model = load(
        replace(
            pair_of(args),
            total_token=args.total_token,
            depth=args.depth,
            top_k=args.top_k,
            paths=args.paths,
            kind=settings.method.tree,
            drafter=settings.method.drafter,
            temperature=args.temperature,
            sampling=hybrid_arguments(args),
        )
    )
    found = list(audited(model, questions, settings))
    results = findings(found)
    difference = any(result.holm <= settings.alpha for result in results)
    show = _json if args.format == "json" else _table
    print(show(settings, found, results, difference))
    return difference


def _settings(args: argparse.Namespace) -> Settings:
    Warper(args.temperature, args.top_p, args.sample_top_k)
    if args.temperature == 0:
        raise InputError("--temperature must be above 0; at 0 nothing is random, and the texts themselves can be equal")
    for name, least in (("draws", LEAST_DRAWS), ("tokens", 2), ("prompts", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} must be {least} or more, not {getattr(args, name)}")
    if not 0.0 < args.alpha < 1.0:
        raise InputError(f"--alpha must lie between 0 and 1, not {args.alpha}")
    return Settings(
        method=Method.parse(args.method),
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.sample_top_k,
        draws=args.draws,
        tokens=args.tokens,
        alpha=args.alpha,
        seed=args.seed,
        chat_template_kwargs=template_arguments(args.chat_template_kwargs),
    )


def _verdict(settings: Settings, results: Sequence[Finding], difference: bool) -> str:
    method = settings.method.name
    least = min(result.holm for result in results)
    about = f"{len(results)} tests, smallest corrected p {least:.4f}, level {settings.alpha:g}"
    if difference:
        return f"DIFFERENCE: the texts of {method} do not have the law of plain sampling ({about})"
    return f"no difference found between {method} and plain sampling ({about})"


def _table(settings: Settings, found: Sequence[PromptResult], results: Sequence[Finding], difference: bool) -> str:
    method = settings.method.name
    samples = Table(
        f"{method} at temperature {settings.temperature:g}: "
        f"{settings.draws} texts of {settings.tokens} tokens behind each prompt",
        ("question", "drafted tokens", "different texts"),
        [(str(result.question_id), f"{result.drafted:.1%}", str(result.different)) for result in found],
    )
    tests = Table(
        "Tests",
        ("question", "test", "p", "Holm"),
        [(str(result.prompt), result.test, f"{result.p:.4f}", f"{result.holm:.4f}") for result in results],
    )
    notes = []
    if not any(result.drafted for result in found):
        notes.append("No drafted token was accepted, so of verification only rejection was tested.")
    shown = [f"{table.title}\n{table.text()}" for table in (samples, tests)]
    return "\n\n".join([*shown, *notes, _verdict(settings, results, difference)])


def _json(settings: Settings, found: Sequence[PromptResult], results: Sequence[Finding], difference: bool) -> str:
    prompts = [
        {"question_id": result.question_id, "drafted": result.drafted, "different": result.different}
        for result in found
    ]
    return json.dumps(
        {
            "settings": asdict(settings),
            "prompts": prompts,
            "tests": [asdict(result) for result in results],
            "difference": difference,
            "verdict": _verdict(settings, results, difference),
        },
        indent=2,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status, 1 for a difference."""
    differences: list[bool] = []
    status = run_program(lambda arguments: differences.append(audit(arguments)), argv)
    return status or int(any(differences))


if __name__ == "__main__":
    sys.exit(main())
