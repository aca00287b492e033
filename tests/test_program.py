"""How programs end: the exit status, and what a person sees."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from eagle.errors import InputError
from eagle.program import FAILED, NO_READER, UNWRITABLE, run_program


def ending(error: BaseException) -> int:
    def program(argv: Sequence[str] | None) -> None:
        raise error

    return run_program(program, [])


def run(body: str, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from eagle.errors import InputError; from eagle.program import run_program\n"
        f"def program(argv): {body}\nsys.exit(run_program(program))"
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


@pytest.mark.parametrize("buffered", ["1", ""])
@pytest.mark.parametrize("printed", ["print('a')", "print('a', flush=True)", "print('a' * 100_000)"])
def test_an_output_that_cannot_be_written_is_one_line(printed: str, buffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(printed, stdout=full.fileno(), PYTHONUNBUFFERED=buffered)
    assert done.stderr == "error: the output cannot be written: No space left on device\n"
    assert done.returncode == UNWRITABLE


def test_help_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "eagle.evaluation.stats", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
            check=False,
        )
    assert done.stderr == "error: the output cannot be written: No space left on device\n"
    assert done.returncode == UNWRITABLE


def test_wrong_input_comes_before_an_output_that_cannot_be_written() -> None:
    body = "print('a'); raise InputError('this is wrong')"
    with Path("/dev/full").open("w") as full:
        done = run(f"exec({body!r})", stdout=full.fileno(), PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (2, "error: this is wrong\n")


def test_an_output_that_is_closed_is_none_to_fail() -> None:
    program = "import sys; from eagle.program import run_program; sys.exit(run_program(lambda argv: print('a')))"
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} >&-"
    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(BrokenPipeError("a worker's")) == FAILED
    assert "a worker's" in capsys.readouterr().err


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    done = run("print('gr\\u00fcn \\u2212')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "gr\\xfcn \\u2212\n")
