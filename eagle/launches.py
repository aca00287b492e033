"""Few launches: functions compiled to a few kernels, and computations recorded, to be launched as one.

Launching a small kernel from Python takes longer than running it, and a round has a thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import torch
import torch.fx.experimental._config
from torch import Tensor

Result = TypeVar("Result")
COMPILING = {
    # Nothing is concluded from what another model had otherwise, and its numbers are constants.
    "automatic_dynamic_shapes": False,
    "specialize_float": True,
    # What is called tells no profiler how long Python took, and leaves nothing in modules (``packed.Whole`` would).
    "record_runtime_overhead": False,
    "replay_side_effects": False,
}
# On a CPU starting a second thread takes longer than going over so few numbers, as most kernels of a layer do.
GENERATING = {"cpp.min_chunk_size": 8192}
# Runs before the recording, in which libraries make what they need and kernels are chosen.
WARM_UPS = 2


class CompiledForms:
    """A function of tensors, compiled for each form in which it is called, and from then on called without looking at
    what it is called with: looking, layer after layer, takes longer than some of the kernels.

    So whatever the compiler concludes from the first call of a form holds for all: dtypes, devices and ranks, where in
    the other arguments tensors are, which of them are one and the same, what is no tensor, sizes and strides that do
    not vary, and that those which do are not 1. Generated code refuses other sizes and strides, and nothing else.

    Args:
        function: it.
        any_sizes: all sizes of tensors may vary, each by itself; else only those that ``mark_varying`` was told of.
    """

    def __init__(self, function: Callable[..., Any], any_sizes: bool = False) -> None:
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        dynamic = True if any_sizes else None
        self._function: Any = torch.compile(
            function, fullgraph=True, dynamic=dynamic, backend=_inductor, options=options
        )
        self._any_sizes = any_sizes
        self._forms: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, form: Hashable, *args: Any, **kwargs: Any) -> Any:
        """Compute.

        Args:
            form: numbers that are the same in all calls with this one, and which sizes are 1.
            args: of the function.
            kwargs: likewise.
        """
        run = self._forms.get(form)
        if run is None:
            run = self._forms[form] = self._compiled(args, kwargs)
        return run(*args, **kwargs)

    def _compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        duck_shape = not self._any_sizes
        with torch.fx.experimental._config.patch(use_duck_shape=duck_shape), torch._dynamo.config.patch(COMPILING):  # type: ignore[attr-defined]
            found = self._function.aot_compile((args, kwargs))
        found.disable_guard_check()
        run: Callable[..., Any] = found
        return run


def _inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Torch's compiler, which finds on disk what it has compiled before: the name that each graph is given anew would
    be part of what it looks for."""
    graph._backend_id = None  # type: ignore[assignment]
    compiled: Callable[..., Any] = torch._inductor.compile(graph, list(inputs), options=GENERATING)
    return compiled


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
