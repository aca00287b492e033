"""How programs end: the exit status, and what a person sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from eagle.errors import InputError
from eagle.program import FAILED, NO_READER, run_program


def ending(error: BaseException) -> int:
    def program(argv: Sequence[str] | None) -> None:
        raise error

    return run_program(program, [])


def run(body: str, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys; from eagle.program import run_program\ndef program(argv): {body}\nsys.exit(run_program(program))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_each_ending_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda argv: None) == 0
    assert ending(InputError("this\nis wrong")) == 2
    assert capsys.readouterr().err == "error: this is wrong\n"
    assert ending(KeyboardInterrupt()) == 130
    # Not 1, with which programs that compare say that there is a difference.
    assert ending(RuntimeError("what nobody foresaw")) == FAILED == 3
    assert "RuntimeError: what nobody foresaw" in capsys.readouterr().err


@pytest.mark.parametrize("printed", ["print('a')", "print('a', flush=True)", "print('a' * 100_000)"])
def test_a_reader_that_has_gone_ends_it_without_a_word(printed: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(printed, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (NO_READER, "")


def test_another_broken_pipe_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(BrokenPipeError("a worker's")) == FAILED
    assert "a worker's" in capsys.readouterr().err


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    done = run("print('gr\\u00fcn \\u2212')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "gr\\xfcn \\u2212\n")
