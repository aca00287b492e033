"""Running the answering program on a tiny chat pair, to its end or to an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle.evaluation import gen_ea_answer_llama3chat
from tests.evaluation import programs


def arguments(pair: tuple[Path, Path], questions: Path, *more: str) -> list[str]:
    """As ``programs.arguments``, with the bounds of the tree."""
    return programs.arguments(pair, questions, "--total-token", "8", "--depth", "2", "--top-k", "3", *more)


def failing(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run to an error; what it printed."""
    capsys.readouterr()
    assert gen_ea_answer_llama3chat.main(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]
