"""A forward of the target over the nodes of a tree, in every form of its weights: ``python -m benchmarks.forward``.

They are asked in turn, each time another one first, so drift of the machine hits all. Reported: medians in
milliseconds, and how many times faster than as loaded, with 95 % bootstrap intervals of paired draws.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from eagle import assets
from eagle.errors import InputError
from eagle.model.loading import DTYPES
from eagle.program import run_program
from eagle.target.base import load_base
from eagle.target.compiling import compile_target
from eagle.target.int8 import INT8
from eagle.target.loading import load_target
from eagle.target.target import Target
from eagle.tree.draft_tree import DraftTree

RESAMPLES = 2000
LOADED = "as loaded"
FORMS: dict[str, tuple[str | None, bool]] = {
    "packed": (None, False),
    "packed, compiled": (None, True),
    "int8": (INT8, False),
    "int8, compiled": (INT8, True),
}
"""Of each beside ``LOADED``: how it is quantised, and whether it is compiled."""


def tree_of(nodes: int) -> DraftTree:
    """A tree of which every node has two children, as far as there are nodes."""
    ids = torch.arange(nodes)
    depths = torch.tensor([(node + 1).bit_length() - 1 for node in range(nodes)])
    return DraftTree(torch.arange(nodes), ((ids - 1) // 2).clamp(min=0), depths, torch.zeros(nodes))


def targets(path: str, dtype: torch.dtype | str) -> dict[str, Target]:
    """The same model in every form that this machine has."""
    found = {LOADED: Target(load_base(path, dtype=dtype, device_map="cpu"))}
    for name, (quantize, compiled) in FORMS.items():
        try:
            target = load_target(path, quantize, dtype=dtype, device_map="cpu")
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if compiled:
            compile_target(target)
        if not compiled or target.compiled is not None:
            found[name] = target
    return found


def scorer(target: Target, context: int, nodes: int) -> Callable[[], None]:
    """Scores the same tree behind the same text, time and again."""
    cache = target.new_cache(context + nodes)
    target.prefill(torch.arange(context)[None] % target.vocab_size, cache, features=False)
    tree = tree_of(nodes)

    def score() -> None:
        target.score(tree, cache, features=False)
        cache.keep(())

    return score


@torch.inference_mode()
def measure(found: dict[str, Target], context: int, nodes: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every forward, by kind."""
    scorers = {kind: scorer(target, context, nodes) for kind, target in found.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in found}
    for number in range(-2, repeats):
        kinds, first = list(found), number % len(found)
        for kind in (*kinds[first:], *kinds[:first]):
            began = time.perf_counter()
            scorers[kind]()
            if number >= 0:
                seconds[kind].append(time.perf_counter() - began)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """How many times faster, by medians, with an interval."""
    source = random.Random(0)  # noqa: S311  # resampling, not secrets
    pairs = list(zip(slow, fast, strict=True))

    def of(picked: Sequence[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in picked) / statistics.median(b for _, b in picked)

    drawn = sorted(of(source.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return f"{of(pairs):.2f}x ({drawn[int(0.025 * RESAMPLES)]:.2f}-{drawn[int(0.975 * RESAMPLES)]:.2f})"


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--base-model-path", help="directory or hub id; default: the embedded model")
    parse.add_argument("--dtype", default="float32", choices=DTYPES)
    parse.add_argument("--nodes", type=int, nargs="+", default=[1, 8, 16, 32], help="of a tree, its root included")
    parse.add_argument("--context", type=int, default=150, help="tokens before the tree")
    parse.add_argument("--repeats", type=int, default=40)
    args = parse.parse_args(argv)
    if min(args.repeats, args.context, *args.nodes) < 1:
        raise InputError("--repeats, --context and --nodes must be 1 or more")
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    found = targets(assets.resolve_base(args.base_model_path), dtype)
    threads, level = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    print(f"{found[LOADED].dtype}, {threads} threads, {level}, {args.context} tokens of context")
    for nodes in args.nodes:
        seconds = measure(found, args.context, nodes, args.repeats)
        line = f"{nodes:>3} nodes:"
        for kind in found:
            line += f"  {kind} {1e3 * statistics.median(seconds[kind]):.1f} ms"
            line += "" if kind == LOADED else f", {ratio(seconds[LOADED], seconds[kind])}"
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
