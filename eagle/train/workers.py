"""Decoding answers in several processes of one thread each.

A small model on a CPU is decoded faster by a process a core than by one process whose threads wait for each other in
every product: ``python -m benchmarks.train generate`` measures both.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from eagle.errors import InputError
from eagle.identity import Identity, base_identity
from eagle.target.base import load_base
from eagle.target.target import Target
from eagle.train.decode import Batch, Request, Text
from eagle.tree.warping import Warper

# Seconds between looks at whether the other side is still there.
PATIENCE = 2.0


@dataclass(frozen=True)
class BatchPlan:
    """What a process needs to know to build its batch.

    Attributes:
        path: of the target.
        base: what it holds.
        dtype: of its weights; "auto" is the checkpoint's own.
        rows: texts at a time.
        warper: top_p and top_k of all texts, at temperature 1.
        most_new_tokens: of any text.
    """

    path: str
    base: Identity
    dtype: torch.dtype | str
    rows: int
    warper: Warper
    most_new_tokens: int

    def batch(self, target: Target) -> Batch:
        """The batch, empty."""
        return Batch(target, self.rows, self.warper, target.stop_ids, self.most_new_tokens)


def default_workers(target: Target) -> int:
    """A process for each of torch's threads, as far as half of the memory holds their weights; 1 on other devices."""
    if target.device.type != "cpu":
        return 1
    weights = sum(parameter.numel() * parameter.element_size() for parameter in target.model.parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(torch.get_num_threads(), memory // 2 // weights))


class Workers:
    """Processes that decode requests on the CPU.

    Args:
        plan: of the batch of each.
        count: of the processes.
    """

    def __init__(self, plan: BatchPlan, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        # As short as can be, so that a limit on tokens is looked at when a request is about to begin.
        self._requests: Any = context.Queue(maxsize=1)
        self._results: Any = context.Queue()
        self._made = context.Array("q", count, lock=False)
        self._processes = [
            context.Process(target=_work, args=(plan, place, self._made, self._requests, self._results), daemon=True)
            for place in range(count)
        ]

    @property
    def made(self) -> int:
        """Tokens drawn so far."""
        return sum(self._made)

    def decode(self, requests: Iterable[Request]) -> Iterator[Text]:
        """Decode all requests; yields texts as they end.

        Args:
            requests: read in a thread of its own, one by one, as the processes begin them.

        Raises:
            InputError: as ``eagle.train.decode.Batch.decode``; a target that cannot be loaded; a process was killed.
            Exception: whatever reading ``requests`` raised.
        """
        for process in self._processes:
            process.start()
        threading.Thread(target=self._feed, args=(requests,), daemon=True).start()
        running = len(self._processes)
        try:
            while running:
                # Not only when nothing comes: the others may go on for hours.
                self._look_after_processes()
                try:
                    result = self._results.get(timeout=PATIENCE)
                except queue.Empty:
                    continue
                if result is None:
                    running -= 1
                elif isinstance(result, Exception):
                    raise result
                else:
                    yield result
        finally:
            for process in self._processes:
                process.terminate()
                process.join()

    def _feed(self, requests: Iterable[Request]) -> None:
        try:
            for request in requests:
                self._requests.put(request)
        except Exception as error:  # nobody else can tell the thread that waits for texts
            self._results.put(error)
        for _ in self._processes:
            self._requests.put(None)

    def _look_after_processes(self) -> None:
        for process in self._processes:
            if process.exitcode:
                how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
                raise InputError(
                    f"a decoding process ended with {how}; if memory was short, fewer --workers or a smaller "
                    "--batch-size need less; the answers so far are kept, and the same command goes on"
                )


def _work(plan: BatchPlan, place: int, made: Any, requests: Any, results: Any) -> None:
    """What each process does; ends with its parent, which also is the one that hears an interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        target = Target(load_base(plan.path, dtype=plan.dtype, device_map={"": "cpu"}))
        if base_identity(plan.path) != plan.base:
            raise InputError(f"{plan.path} changed while it was loaded; run the command again")
        batch = plan.batch(target)

        def source() -> Iterator[Request]:
            while True:
                made[place] = batch.made
                try:
                    request = requests.get(timeout=PATIENCE)
                except queue.Empty:
                    parent = multiprocessing.parent_process()
                    if parent is None or not parent.is_alive():
                        raise SystemExit(1) from None
                    continue
                if request is None:
                    return
                yield request

        for text in batch.decode(source()):
            made[place] = batch.made
            results.put(text)
    except InputError as error:
        results.put(error)
    results.put(None)
