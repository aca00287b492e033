"""Children that Ctrl-C interrupts."""

from __future__ import annotations

import signal


def interruptible() -> None:
    """For ``preexec_fn``: a shell ignores SIGINT in what it runs in the background, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
