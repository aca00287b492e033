"""What reading and summing up a large run takes: ``python -m benchmarks.stats``.

Writes answers and info of many rounds into a temporary folder, as the answering programs do, and reads them in a
process of its own, whose peak memory is then only that of reading.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eagle.errors import InputError
from eagle.program import run_program

TIMES = ("tree_time", "eval_time", "update_time", "draft_time")
ONCE = ("tokenizer_time", "tokenizer_decode_time", "processor_time", "kv_time", "reset_tree_time")
DRAFT_LENGTH = 7
# Runs in the process that is measured.
MEASURED = """
import resource, sys, time
from pathlib import Path
begin, worked = time.perf_counter(), time.process_time()
from eagle.evaluation.reading.runs import read_run
from eagle.evaluation.reading.summary import Sums, summarise
run = read_run(Path(sys.argv[1]))
read = time.perf_counter()
summarise(Sums.of(run))
end = time.perf_counter()
unit = 2**20 if sys.platform == "darwin" else 2**10
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
print(f"{len(run.accept_length):,} rounds: read in {read - begin:.1f} s, summed up in {end - read:.1f} s")
print(f"of these, {time.process_time() - worked:.1f} s on the processor; {peak:.0f} MB of memory at most")
"""


def write_large_run(folder: Path, questions: int, rounds: int) -> Path:
    """Write a run of two turns a question, with made-up acceptance and times.

    Args:
        folder: to write to.
        questions: how many.
        rounds: of each turn.

    Returns:
        The file of answers.
    """
    generator = random.Random(0)  # noqa: S311 (figures, no secrets)
    answers = folder / "made-up-temperature-1.0_ea.jsonl"
    info = folder / "made-up-temperature-1.0_ea_info.jsonl"
    with answers.open("w") as answer_file, info.open("w") as info_file:
        for question in range(questions):
            accepted = [[generator.randrange(DRAFT_LENGTH) for _ in range(rounds)] for _ in range(2)]
            new_tokens = [1 + sum(turn) + rounds for turn in accepted]
            times = {key: [[generator.random() / 10 for _ in range(rounds)] for _ in range(2)] for key in TIMES}
            once = {key: [0.1, 0.1] for key in ONCE}
            choice = {
                "index": 0,
                "turns": ["word " * count for count in new_tokens],
                "idxs": [rounds - 1] * 2,
                "new_tokens": new_tokens,
                "wall_time": [float(rounds)] * 2,
            }
            answer = {
                "question_id": question,
                "answer_id": "",
                "model_id": "made-up",
                "choices": [choice],
                "tstamp": 0.0,
            }
            answer_file.write(json.dumps(answer) + "\n")
            described = {"question_id": question, "choice_index": 0, **once, "generate_time": [float(rounds)] * 2}
            counted = {
                "accept_length": accepted,
                "draft_length": [[DRAFT_LENGTH] * rounds] * 2,
                "token_ends": [list(range(5, 5 * count + 1, 5)) for count in new_tokens],
            }
            info_file.write(json.dumps(described | times | counted) + "\n")
    return answers


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark.

    Raises:
        InputError: fewer than one question or round.
    """
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parse.add_argument("--questions", type=int, default=2000)
    parse.add_argument("--rounds", type=int, default=250, help="of each of a question's two turns")
    args = parse.parse_args(argv)
    if args.questions < 1 or args.rounds < 1:
        raise InputError("--questions and --rounds must be 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        answers = write_large_run(Path(folder), args.questions, args.rounds)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        print(f"{size / 1e6:.0f} MB of JSON lines", flush=True)
        subprocess.run([sys.executable, "-c", MEASURED, str(answers)], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
