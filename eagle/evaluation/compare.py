"""A run beside its baseline: ``python -m eagle.evaluation.compare BASELINE.jsonl RUN.jsonl [RUN.jsonl ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eagle.errors import InputError
from eagle.evaluation.records import RunFiles, read_records
from eagle.program import run_program


@dataclass(frozen=True)
class Totals:
    """Sums over the questions of a run.

    Attributes:
        name: file name without suffix.
        questions: answered.
        new_tokens: emitted.
        seconds: of generation, prefill included.
        rounds: of verification.
        accepted: draft tokens.
    """

    name: str
    questions: int
    new_tokens: int
    seconds: float
    rounds: int
    accepted: int

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second."""
        return self.new_tokens / self.seconds

    @property
    def tau(self) -> float:
        """Accepted draft tokens a round, plus the target's own."""
        return 1 + self.accepted / max(self.rounds, 1)


def totals(answers: Path) -> Totals:
    """Sum up a run.

    Raises:
        InputError: no answers or no info there.
    """
    files = RunFiles.beside(answers)
    answered, infos = read_records(files.answers), read_records(files.info)
    if not answered or not infos:
        raise InputError(f"{answers}: no answers with their info ({files.info.name}) there")
    lengths = [length for info in infos for turn in info["accept_length"] for length in turn]
    return Totals(
        name=answers.name.removesuffix(".jsonl"),
        questions=len(answered),
        new_tokens=sum(sum(choice["new_tokens"]) for answer in answered for choice in answer["choices"]),
        seconds=sum(sum(info["generate_time"]) for info in infos),
        rounds=len(lengths),
        accepted=sum(lengths),
    )


def table(runs: Sequence[Totals]) -> str:
    """Lines of an aligned table; the first run is the baseline."""
    rows = [("run", "questions", "new tokens", "tokens/s", "speed-up", "tau")]
    for run in runs:
        rows.append(
            (
                run.name,
                str(run.questions),
                str(run.new_tokens),
                f"{run.tokens_per_second:.1f}",
                f"{run.tokens_per_second / runs[0].tokens_per_second:.2f}x",
                f"{run.tau:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def compare(argv: Sequence[str] | None) -> None:
    """Print the table of the runs given."""
    parse = argparse.ArgumentParser(description="Tokens/s, speed-up over the first run, and tau.")
    parse.add_argument("answers", nargs="+", type=Path, help="answer files, the baseline first")
    print(table([totals(file) for file in parse.parse_args(argv).answers]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(compare, argv)


if __name__ == "__main__":
    sys.exit(main())
