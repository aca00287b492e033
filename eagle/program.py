"""What every program has in common: how it ends."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from eagle.errors import InputError

FAILED = 3
"""Exit status of an error that nobody foresaw: 1 is for programs that compare, 2 for wrong input."""
NO_READER = 141
"""As of a program that SIGPIPE ends, seen from a shell."""


def run_program(
    program: Callable[[Sequence[str] | None], None],
    argv: Sequence[str] | None = None,
    interrupted: str = "interrupted",
) -> int:
    """Run a program for a person, whose terminal may lack characters that it prints: they are shown escaped.

    Returns:
        The exit status. Wrong input is one line and 2, Ctrl-C is 130 and says ``interrupted``, a reader of the output
        that has gone (``| head``) is ``NO_READER``, any other error shows where it happened and is ``FAILED``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        program(argv)
        # Here and not when Python ends, where an error could only be printed.
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            # What is still buffered goes nowhere, without a complaint when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return NO_READER
        traceback.print_exc()
        return FAILED
    return 0


def _nobody_reads() -> bool:
    """Whether it was the output's pipe that broke, and no other: then another line breaks it again."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
