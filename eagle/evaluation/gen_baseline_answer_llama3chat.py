"""Answer benchmark questions autoregressively: ``python -m eagle.evaluation.gen_baseline_answer_llama3chat``.

The same target path, sampling and files as ``gen_ea_answer_llama3chat``, without drafts: speed-ups are relative to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eagle.evaluation.answering.cli import INTERRUPTED, answer_questions
from eagle.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(lambda given: answer_questions(baseline=True, argv=given), argv, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
