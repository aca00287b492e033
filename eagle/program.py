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
UNWRITABLE = 74
"""Exit status where what is printed cannot be written, as ``sysexits.h`` has it: a full disk, for instance."""
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
        that has gone (``| head``) is ``NO_READER``, an output that cannot be written is ``UNWRITABLE`` and one line,
        any other error shows where it happened and is ``FAILED``.

    Raises:
        SystemExit: the program's own, as argparse's.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    status, ended, refused = 0, None, None
    try:
        program(argv)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        status = 130
    except SystemExit as error:
        # Of --help, for instance, which has printed something.
        ended = error
    except Exception as error:
        refused = _refused() if isinstance(error, OSError) else None
        if refused is None:
            traceback.print_exc()
            status = FAILED
    # Here and not when Python ends, where an error could only be printed.
    refused = refused or _refused("")
    if refused is not None:
        return _give_up(refused, status)
    if ended is not None:
        raise ended
    return status


def _refused(more: str = "\n") -> OSError | None:
    """Why the output takes neither what is still buffered nor more; None if it does, or was closed all along."""
    if sys.stdout is None:
        return None
    try:
        print(end=more, flush=True)
    except OSError as error:
        return error
    return None


def _give_up(refused: OSError, status: int) -> int:
    """The status of a program whose output cannot be written, and a line that says why where somebody may read it."""
    # What is still buffered goes nowhere, without a complaint when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if status:
        return status
    if isinstance(refused, BrokenPipeError):
        return NO_READER
    print(f"error: the output cannot be written: {refused.strerror or refused}", file=sys.stderr)
    return UNWRITABLE
