"""Timing that is right on devices which work asynchronously, and costs nothing on those which do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds between laps, waiting for the device first where there is one.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)
        self._last = self.now()

    def now(self) -> float:
        """Seconds on a monotonic clock, after all work submitted so far."""
        if self._wait is not None:
            self._wait()
        return time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = self.now()
        elapsed, self._last = now - self._last, now
        return elapsed

    @contextmanager
    def timing(self, record: Callable[[float], object]) -> Iterator[None]:
        """Give the seconds that a block takes to ``record``, if it ends without an error."""
        began = self.now()
        yield
        record(self.now() - began)
