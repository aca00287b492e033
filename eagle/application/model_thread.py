"""The thread that a model runs in, so that showing what it writes does not hold it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Seen = TypeVar("Seen")


class ModelThread:
    """Does what it is given one thing after another, in the order it was given."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def begin(self, work: Callable[[], None]) -> Future[None]:
        """Have something done when everything before it is done."""
        return self._executor.submit(work)

    def close(self) -> None:
        """Wait until everything is done."""
        self._executor.shutdown(cancel_futures=True)


def watch(work: Future[None], look: Callable[[], Seen], period: float) -> Iterator[Seen]:
    """Look at something now, every ``period`` seconds while work on it goes on, and when it is done.

    Raises:
        Exception: whatever the work raised, after the last look.
    """
    while not work.done():
        yield look()
        wait([work], timeout=period)
    yield look()
    work.result()
