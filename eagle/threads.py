"""Threads that run models.

Kernels on a CPU are OpenMP's, and every thread that runs them is given workers of its own. As soon as there are more of
all of these than cores, GNU's OpenMP lets workers sleep between two kernels, and a decoding takes twice as long
(measured: 17.5 ms instead of 7.8 for a forward of the embedded default over a tree, on two cores). So a model that is
run in a thread is loaded and compiled in that one, or in one that is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Done = TypeVar("Done")


def apart(work: Callable[[], Done]) -> Done:
    """Do something in a thread that is gone afterwards, and its workers with it.

    Raises:
        BaseException: whatever the work raised.
    """
    done: list[Done] = []
    failed: list[BaseException] = []

    def do() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    # Ctrl-C ends the program, not after the work.
    thread = threading.Thread(target=do, name="apart", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
