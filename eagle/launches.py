"""Few launches: functions compiled to a few kernels, and computations recorded, to be launched as one.

Launching a small kernel from Python takes longer than running it, and a round has a thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Generic, TypeVar

import torch
import torch.fx.experimental._config
from torch import Tensor

Result = TypeVar("Result")
# Runs before the recording, in which libraries make what they need and kernels are chosen.
WARM_UPS = 2


def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """A function, to be compiled for the kinds and sizes of tensors that it is called with; beside tensors it must be
    called with the same things, or with others of the same structure, always: nobody looks.

    Args:
        function: of tensors.
        dynamic: whether for all sizes at once; None: for those that it is called with, and for others when they come.
    """
    # What a layer is made of does not change; looking at all of it again would take longer than what is saved.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
    return torch.compile(function, fullgraph=True, dynamic=dynamic, isolate_recompiles=True, options=options)  # type: ignore[call-overload]


class CompiledForms:
    """A function, compiled for tensors of any sizes, apart for each form in which it is called.

    Nobody looks at sizes again (``compiled``), so whatever the compiler concludes from those of the first call holds
    for all: that sizes which are equal there are one and the same, which it is told not to, and that a size is not 1.

    Args:
        function: of tensors.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._forms: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, form: Hashable, *args: Any) -> Any:
        """Compute.

        Args:
            form: numbers that are the same in all calls with this one, and which sizes are 1.
            args: of the function.
        """
        if form not in self._forms:
            self._forms[form] = compiled(self._function, dynamic=True)
        with torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return self._forms[form](*args)


def mark_varying(found: object, sizes: tuple[int, ...]) -> None:
    """Tell the compiler which sizes of tensors, in tuples however deep, will vary."""
    if isinstance(found, Tensor):
        for dim, size in enumerate(found.shape):
            if size in sizes:
                torch._dynamo.maybe_mark_dynamic(found, dim)
    elif isinstance(found, tuple):
        for each in found:
            mark_varying(each, sizes)


class Recorded(Generic[Result]):
    """A computation that reads and writes the same tensors each time, and waits for nothing: a CUDA graph.

    On devices other than CUDA's it is computed anew each time.

    Args:
        compute: the computation; it is run right away. What it is to read has been written to the tensors it reads,
            which a graph knows by their addresses only: whoever keeps the recording keeps them.
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
def _pool(device: torch.device) -> Any:
    """Memory for all recordings: they run one after the other, so what one has done with serves the next."""
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()
