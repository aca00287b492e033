"""Answer benchmark questions with EAGLE-3: ``python -m eagle.evaluation.gen_ea_answer_llama3chat``.

Works with every model whose tokenizer has a chat template; the name is the one EAGLE's users know.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eagle.evaluation.answering.cli import INTERRUPTED, answer_questions
from eagle.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(lambda given: answer_questions(baseline=False, argv=given), argv, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
