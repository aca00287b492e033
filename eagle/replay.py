"""A computation over memory that stays where it is, launched as one: a CUDA graph.

Launching a small kernel from Python takes a GPU longer than running it, and a round has a thousand of them. Recorded
once, all of them are launched by one call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")
# Runs before the recording, in which libraries make what they need and kernels are chosen.
WARM_UPS = 2


class Recorded(Generic[Result]):
    """A computation that reads and writes the same tensors each time, and waits for nothing.

    On devices other than CUDA's it is computed anew each time.

    Args:
        compute: the computation; it is run right away. What it is to read has been written to the tensors it reads.
        device: whose.
    """

    def __init__(self, compute: Callable[[], Result], device: torch.device) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            self._compute = compute
            return
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                compute()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=_pool(device), stream=stream, capture_error_mode="thread_local"):
            self._result = compute()
        self._graph = graph

    def __call__(self) -> Result:
        """Compute; the tensors of the result hold it until this or another recording is run."""
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._result


@cache
def _pool(device: torch.device) -> tuple[int, int]:
    """Memory for all recordings: they run one after the other, so what one has done with serves the next."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()
