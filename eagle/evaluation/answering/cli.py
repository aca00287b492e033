"""What the answering programs do: read arguments, load the pair, answer what is not answered yet."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

import eagle
from eagle.data.questions import Question, load_questions
from eagle.decoding.method import DRAFTERS, VERIFIERS, Method
from eagle.evaluation.answering import sharding
from eagle.evaluation.answering.answer import Answered
from eagle.evaluation.answering.arguments import add_hybrid_arguments, answering_parser, hybrid_arguments
from eagle.evaluation.answering.bench import question_file
from eagle.evaluation.answering.cells import Cell, cell_of, described, names
from eagle.evaluation.answering.records import some_of
from eagle.model.loading import pair_of
from eagle.tree.shape import AUTO_TOTAL_TOKEN, TREES

INTERRUPTED = "interrupted; finished questions are saved, and the same command resumes"


def parser(baseline: bool) -> argparse.ArgumentParser:
    """The arguments of a program that answers in one cell."""
    parse = answering_parser(
        "Answer benchmark questions with "
        + ("autoregressive decoding (the baseline)." if baseline else "EAGLE-3 speculative decoding, or HSD.")
    )
    if not baseline:
        hsd = parse.add_argument_group("hierarchical verification")
        hsd.add_argument("--hsd", action="store_true", help="hybrid trees, joint verification (lossless)")
        hsd.add_argument("--verifier", help=f"ablation: another rule ({', '.join(VERIFIERS)})")
        hsd.add_argument("--tree", help=f"ablation: another kind of tree ({', '.join(TREES)})")
        hsd.add_argument(
            "--drafter",
            choices=DRAFTERS,
            help="what drafts; default: the head, if there is one, else the draft model",
        )
        add_hybrid_arguments(hsd)
    one = parse.add_argument_group("sampling and files")
    one.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    one.add_argument("--top_p", "--top-p", type=float, default=1.0, help="nucleus mass; 0 and 1 are off")
    one.add_argument("--answer-file", type=Path, help="exactly where the answers go")
    return parse


def answer_questions(baseline: bool, argv: Sequence[str] | None) -> None:
    """The whole program of one cell.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser(baseline).parse_args(argv)
    drafting = (
        None if baseline else Method.named(args.hsd, args.verifier, args.tree, args.drafter or pair_of(args).drafted_by)
    )
    sampled = {} if baseline else hybrid_arguments(args)
    cell = cell_of(args, drafting, args.temperature, args.top_p, sampled, args.answer_file)
    count = answer_cells([cell], args)
    print(f"{cell.files.answers}: {count} questions answered", file=sys.stderr)


def answer_cells(cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """Answer every question in every cell, with the pair loaded once.

    The cells take turns: each question is answered in all of them before the next, so that what they are compared in
    was timed at the same time. Finished questions are on disk, cell by cell, and are not answered again.

    Args:
        cells: of one pair, each with files of its own.
        args: of ``arguments.answering_parser``.

    Returns:
        The number of questions.

    Raises:
        InputError: anything the user can put right; nothing is written before all cells are found in order.
    """
    file = question_file(args)
    questions = load_questions(file, args.question_begin, args.question_end)
    questions_sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    workers = sharding.worker_count(args.num_gpus_total, args.num_gpus_per_model)
    with contextlib.ExitStack() as locks:
        for cell in cells:
            locks.enter_context(cell.files.locked())
        cells = [_with_the_tree_it_began_with(cell) for cell in cells]
        models = sharding.OneModel(cells) if workers == 1 else sharding.ShardedModels(cells, workers)
        settings = [
            described(cell, questions_sha256) | facts for cell, facts in zip(cells, models.facts(), strict=True)
        ]
        for cell, shaping in zip(cells, settings, strict=True):
            cell.files.check(shaping)
        environment = _environment(args)
        finished = [
            cell.files.begin(shaping, names(cell) | environment, args.num_choices)
            for cell, shaping in zip(cells, settings, strict=True)
        ]
        units = [
            (place, question)
            for question in questions
            for place, done in enumerate(finished)
            if question.question_id not in done
        ]
        _answer(units, cells, models, len(questions))
        for cell in cells:
            cell.files.sort([question.question_id for question in questions])
            _say_unanswered(cell)
    return len(questions)


def _say_unanswered(cell: Cell) -> None:
    """Which questions could not be answered, in one line, if any."""
    found = cell.files.unanswered()
    if found:
        question, turn, why = found[0]
        print(
            f"{cell.files.answers}: {len(found)} questions could not be answered in full: "
            f"{some_of([question for question, _, _ in found])}; question {question}, turn {turn}: {why}",
            file=sys.stderr,
        )


def _with_the_tree_it_began_with(cell: Cell) -> Cell:
    """A resumed run keeps the size that was measured when it began: the text depends on it."""
    recorded = cell.files.recorded()
    if cell.choice.total_token != AUTO_TOTAL_TOKEN or recorded is None or "tree" not in recorded["settings"]:
        return cell
    return replace(cell, choice=replace(cell.choice, total_token=recorded["settings"]["tree"]["total_token"]))


@dataclass
class _Totals:
    """Of a cell so far, for the progress bar."""

    tokens: int = 0
    seconds: float = 0.0
    rounds: int = 0
    accepted: int = 0

    def add(self, item: Answered) -> dict[str, str]:
        """Add a question; what to show: tokens/s and tau (accepted + 1 a round)."""
        self.tokens, self.seconds = self.tokens + item.new_tokens, self.seconds + item.seconds
        self.rounds, self.accepted = self.rounds + item.rounds, self.accepted + item.accepted
        tau = 1 + self.accepted / max(self.rounds, 1)
        return {"tok/s": f"{self.tokens / max(self.seconds, 1e-9):.1f}", "tau": f"{tau:.2f}"}


def _answer(
    units: Sequence[tuple[int, Question]],
    cells: Sequence[Cell],
    models: sharding.OneModel | sharding.ShardedModels,
    questions: int,
) -> None:
    """Write answers as they come, with one progress bar over all cells."""
    totals = [_Totals() for _ in cells]
    total = len(cells) * questions
    # smoothing=0: the time left follows the mean, as neighbouring units are of methods of different speed.
    with tqdm(total=total, initial=total - len(units), unit="question", dynamic_ncols=True, smoothing=0) as bar:
        for place, item in models.answer_all(units):
            cells[place].files.append(item.answer, item.infos)
            bar.set_postfix(totals[place].add(item), refresh=False)
            if len(cells) > 1:
                bar.set_description(cells[place].label, refresh=False)
            bar.update()


def _environment(args: argparse.Namespace) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "eagle": eagle.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
