"""Look-up in the head's trees beside an oracle that knows which to draft with: ``python -m benchmarks.oracle``.

Where rounds begin in answers to benchmark questions, with the same bound of nodes for all: the expected accepted length
of the head's trees, of look-up's, of the better of these two in each context, which an oracle would take, and of both
in one tree. Expectations are exact given a tree; texts are forgotten from question to question. The intervals (95 %)
resample questions.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from tqdm import tqdm

from eagle.chat_template import chat_ids
from eagle.data.questions import load_questions
from eagle.decoding.method import GRAFTED, HEAD, Method
from eagle.errors import InputError
from eagle.evaluation.answering.bench import add_bench_arguments, question_file
from eagle.evaluation.reading.spec_bench import task_of
from eagle.model.ea_model import EaModel
from eagle.model.loading import add_lookup_arguments, add_pair_arguments, load, lookup_settings, pair_of
from eagle.program import run_program
from eagle.tree.warping import Warper
from eagle.tuning.acceptance import Candidate, expected_lengths

RESAMPLES = 2000
ORACLE = "better of both"


@dataclass(frozen=True)
class Question:
    """What was expected in the contexts of a question.

    Attributes:
        task: of Spec-Bench.
        lengths: accepted, for each drafter and context.
    """

    task: str
    lengths: dict[str, list[float]]


def measured(model: EaModel, args: argparse.Namespace, lookup: str, both: str) -> list[Question]:
    """Look at all questions.

    Args:
        model: the pair.
        args: of the program.
        lookup: name of the drafter that looks up.
        both: name of the one that does beside the head.
    """
    warper = Warper(args.temperature)
    methods = {name: Method.named(hsd=args.temperature > 0, drafter=name) for name in (HEAD, lookup, both)}
    candidates = [
        Candidate(
            model.offers[name].drafter,
            replace(model.shape_for(method, args.temperature), total_token=args.nodes, least=None, least_expanded=None),
            (method.rule,),
            (args.nodes,),
            args.draws,
        )
        for name, method in methods.items()
    ]
    found = []
    for number, question in enumerate(tqdm(load_questions(question_file(args)), dynamic_ncols=True)):
        prompt = chat_ids(model.get_tokenizer(), [{"role": "user", "content": question.turns[0]}], None)
        for offer in model.offers.values():
            offer.drafter.forget()
        generator = torch.Generator().manual_seed(number)
        contexts = expected_lengths(
            model.target,
            prompt.to(model.device),
            candidates,
            warper,
            args.contexts,
            args.every,
            model.stop_ids(),
            generator,
        )
        lengths: dict[str, list[float]] = {name: [] for name in (*methods, ORACLE)}
        for context in contexts:
            values = [one.lengths[0][0] for one in context]
            for name, value in zip(lengths, [*values, max(values[:2])], strict=True):
                lengths[name].append(value)
        if lengths[HEAD]:
            found.append(Question(task_of(question.category) or "", lengths))
    return found


def interval(questions: Sequence[Question], of: Callable[[Sequence[Question]], float]) -> str:
    """A figure of questions, and its interval."""
    source = random.Random(0)  # noqa: S311  # resampling, not secrets
    drawn = sorted(of(source.choices(questions, k=len(questions))) for _ in range(RESAMPLES))
    low, high = drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]
    return f"{of(questions):.2f} ({low:.2f} to {high:.2f})"


def mean(questions: Sequence[Question], name: str) -> float:
    """Expected accepted length over all contexts of questions."""
    return fmean(length for question in questions for length in question.lengths[name])


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark.

    Raises:
        InputError: anything the user can put right.
    """
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_arguments(parse)
    add_lookup_arguments(parse.add_argument_group("look-up"))
    add_bench_arguments(parse, "spec_bench")
    parse.add_argument("--temperature", type=float, default=0.0)
    parse.add_argument("--nodes", type=int, default=16, help="of every tree, its root included")
    parse.add_argument("--contexts", type=int, default=16, help="of a question")
    parse.add_argument("--every", type=int, default=3, help="rounds from one context to the next")
    parse.add_argument("--draws", type=int, default=4, help="trees in each context, where there are samples")
    args = parse.parse_args(argv)
    if min(args.nodes - 1, args.contexts, args.every, args.draws) < 1:
        raise InputError("--nodes must be 2 or more, --contexts, --every and --draws 1 or more")
    model = load(replace(pair_of(args), lookup=lookup_settings(args)))
    for both in GRAFTED:
        lookup = both.partition("+")[2]
        questions = measured(model, args, lookup, both)
        names = (HEAD, lookup, ORACLE, both)
        print(f"\nT={args.temperature:g}, {args.nodes} nodes, {len(questions)} questions")
        print(f"| accepted a round | {' | '.join(names)} | {both} over {ORACLE} |\n|{' --- |' * (len(names) + 2)}")
        tasks = sorted({question.task for question in questions})
        groups = {"all": questions} | {task: [one for one in questions if one.task == task] for task in tasks}
        for group, own in groups.items():
            ratio = interval(own, lambda some: mean(some, both) / mean(some, ORACLE))  # noqa: B023  # asked at once
            cells = " | ".join(f"{mean(own, name):.2f}" for name in names)
            print(f"| {group} | {cells} | {ratio} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
