"""What every program has in common: how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from eagle.errors import InputError


def run_program(
    program: Callable[[Sequence[str] | None], None],
    argv: Sequence[str] | None = None,
    interrupted: str = "interrupted",
) -> int:
    """Run a program for a person: wrong input is one line and exit status 2, Ctrl-C is 130 and says ``interrupted``."""
    try:
        program(argv)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0
