"""How many kernels a round launches, stage by stage: ``python -m benchmarks.launches``.

On a GPU every kernel takes 5 to 20 microseconds to launch from Python, however little it computes, so a round of many
small ones is bound by that. Counted are the operations that reach the dispatcher and compute something: views, which
only say how memory is looked at, and memory that is taken without being filled are left out. The numbers are those of
the code and not of the machine; on a GPU what the host computes meanwhile is left out too. With ``--compile on`` a
compiled region of drafting counts as one, with ``--record`` what a GPU would be given as one recording.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from benchmarks.decode import prompts
from eagle.decoding.decoding import Decoding
from eagle.decoding.method import DEFAULT_SAMPLING, Method
from eagle.decoding.speculation import Speculation
from eagle.drafters.drafter import Drafter
from eagle.drafters.eagle3.compiled import CompiledHead
from eagle.drafters.eagle3.drafter import HeadDrafter
from eagle.errors import InputError
from eagle.launches import Recorded
from eagle.model.ea_model import EaModel
from eagle.model.loading import add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.target.compiled import CompiledLayers, decoder_layers
from eagle.target.compiling import recorded_forwards
from eagle.target.text import Text
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper

STAGES = ("target", "drafting", "verification")
# They compute nothing, though they return memory of their own; ``torch.tensor`` detaches what it has made.
NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach_")


class Launches(TorchDispatchMode):
    """Counts the operations that compute something on a device.

    Args:
        device: whose.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count, and do as asked."""
        found = func(*args, **kwargs or {})
        given, made = _tensors((args, kwargs)), _tensors(found)
        there = any(tensor.device.type == self.device.type for tensor in given + made)
        # What may be a view is a copy where it has memory of its own, as of another dtype.
        views = func.is_view and {_memory(each) for each in made} <= {_memory(each) for each in given}
        self.count += there and not (views or func.overloadpacket.__name__ in NOTHING)
        return found


def _tensors(found: Any) -> list[Tensor]:
    return [each for each in tree_leaves(found) if isinstance(each, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


class Regions:
    """A compiled head each of whose regions counts as one launch.

    Args:
        steps: the head.
        counted: where they are counted.
    """

    def __init__(self, steps: CompiledHead, counted: Launches) -> None:
        self._steps, self._counted = steps, counted

    def behind(self, *arguments: Any) -> Any:
        """See ``Eagle3Head.behind``."""
        return self._once(self._steps.behind, arguments)

    def level(self, *arguments: Any) -> Any:
        """See ``Eagle3Head.level``."""
        return self._once(self._steps.level, arguments)

    def _once(self, region: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self._counted.count += 1
        with _disable_current_modes():
            return region(*arguments)


@contextmanager
def counted_drafting(drafter: Drafter, device: torch.device) -> Iterator[Launches]:
    """Counts what is launched in this context, which drafts."""
    with Launches(device) as counted:
        if not isinstance(drafter, HeadDrafter) or not isinstance(drafter.steps, CompiledHead):
            yield counted
            return
        steps, drafter.steps = drafter.steps, Regions(drafter.steps, counted)
        try:
            yield counted
        finally:
            drafter.steps = steps


@contextmanager
def recordings_are_one(counted: Launches) -> Iterator[None]:
    """Within this context a recording counts as one launch."""
    compute = Recorded.__call__

    def once(recorded: Recorded[Any]) -> Any:
        counted.count += 1
        with _disable_current_modes():
            return compute(recorded)

    Recorded.__call__ = once  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Recorded.__call__ = compute  # type: ignore[method-assign]


@torch.inference_mode()
def of_rounds(
    model: EaModel, prompt: Tensor, method: Method, shape: TreeShape, warper: Warper, rounds: int
) -> dict[str, float]:
    """Median launches of a round, by stage.

    Args:
        model: the pair.
        prompt: (1, n) int64.
        method: how it is decoded.
        shape: of the trees.
        warper: of the text.
        rounds: to look at, fewer if the text ends.
    """
    device = model.target.device
    text = Text(prompt, warper, prompt.shape[1] + 64 * rounds, generator=torch.Generator().manual_seed(0))
    decoding = Decoding(model.target, Speculation(model.drafter, shape, method.rule), text)
    counts: dict[str, list[int]] = {stage: [] for stage in STAGES}
    for _ in range(rounds):
        if decoding.finished:
            break
        with Launches(device) as target, recordings_are_one(target):
            scores = model.target.score(decoding.tree, decoding.cache)
        decoding.cache.keep(())
        with Launches(device) as verification:
            decoding.verify(decoding.tree, scores.logits)
        decoding.step()
        if not decoding.finished:
            # Once more what the step has drafted already.
            with counted_drafting(model.drafter, device) as drafting, recordings_are_one(drafting):
                decoding.drafting.draft(decoding.shape, shape.depth + 1, decoding.chance)
            counts["drafting"].append(drafting.count)
        counts["target"].append(target.count)
        counts["verification"].append(verification.count)
    decoding.stop()
    return {stage: statistics.median(values) if values else 0.0 for stage, values in counts.items()}


def record(model: EaModel) -> None:
    """Let a model decode as on a GPU, whatever the device: what is recorded is computed each time, uncompiled."""
    target, drafter = model.target, model.drafter
    layers = decoder_layers(target.model, len(target.windows))
    target.compiled = CompiledLayers(layers, by=lambda forward: lambda form, *args, **kwargs: forward(*args, **kwargs))
    target.recorded = recorded_forwards(target)
    if isinstance(drafter, HeadDrafter):
        drafter.recorded = drafter.recorded_drafts()


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_arguments(parse)
    parse.add_argument("--record", action="store_true", help="count what is recorded on a GPU as one")
    parse.add_argument("--nodes", type=int, nargs="+", default=[8, 16, 32, 60], help="of a tree, its root included")
    parse.add_argument("--depth", type=int, default=5)
    parse.add_argument("--top-k", type=int, default=10)
    parse.add_argument("--temperature", type=float, default=1.0)
    parse.add_argument("--rounds", type=int, default=12)
    args = parse.parse_args(argv)
    if min(args.rounds, *args.nodes) < 1:
        raise InputError("--rounds and --nodes must be 1 or more")
    model = load(pair_of(args))
    # What is counted cannot be compiled; of the target all is counted.
    model.target.compiled = None
    if args.record:
        record(model)
    prompt = prompts(model, 1, None)[0]
    print(f"{model.target.dtype}, {model.device}, depth {args.depth}, top {args.top_k}, T={args.temperature}")
    print(f"{'':<10}{'nodes':>6}{'target':>9}{'drafting':>10}{'verification':>14}{'besides the target':>20}")
    for nodes in args.nodes:
        besides = []
        for name, method in (("EAGLE-3", Method.named(hsd=False)), ("HSD", Method.named(hsd=True))):
            shape = method.shape(TreeShape(nodes, args.depth, args.top_k, DEFAULT_SAMPLING))
            found = of_rounds(model, prompt, method, shape, Warper(args.temperature), args.rounds)
            besides.append(found["drafting"] + found["verification"])
            print(
                f"{name:<10}{nodes:>6}{found['target']:>9.0f}{found['drafting']:>10.0f}{found['verification']:>14.0f}"
                f"{besides[-1]:>20.0f}"
            )
        print(f"{'':<10}HSD over EAGLE-3 besides the target: {besides[1] / max(besides[0], 1.0):.2f}x", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
