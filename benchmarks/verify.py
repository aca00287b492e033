"""What verification costs: ``python -m benchmarks.verify``.

A tree of 60 nodes as a hybrid drafter makes it, a draft vocabulary of 32,000, a target vocabulary of 128,256: warping,
each rule from given probabilities, and beside them joint verification as the plain recursion over the whole vocabulary
that the tests use as their oracle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from eagle.clock import Clock
from eagle.decoding.method import DEFAULT_SAMPLING
from eagle.devices import best_device, wide_dtype
from eagle.program import run_program
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree
from eagle.tree.drawing import draw_at, shares_of, uniforms
from eagle.tree.growth import grow
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES
from tests.verification import oracle


def drawn_tree(nodes: int, draft_vocabulary: int, vocabulary: int, device: torch.device) -> DraftTree:
    """A hybrid tree grown from random logits."""
    generator = torch.Generator().manual_seed(0)
    support = torch.randperm(vocabulary, generator=generator)[:draft_vocabulary].sort().values.to(device)
    logits = 2 * torch.randn(64, draft_vocabulary, generator=generator).to(device)

    def choose(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return draw_at(weights, shares_of(uniforms(len(weights), generator).to(device, wide_dtype(device)))[:, None])

    shape = TreeShape(nodes, 6, 10, replace(DEFAULT_SAMPLING, threshold=0.001))
    return grow(
        0, logits[0], lambda tokens, _: logits[: len(tokens)], support, shape, 7, Chance(None, lambda _: choose)
    )


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--nodes", type=int, default=60)
    parse.add_argument("--draft-vocabulary", type=int, default=32_000)
    parse.add_argument("--vocabulary", type=int, default=128_256)
    parse.add_argument("--device", default=best_device())
    parse.add_argument("--repeats", type=int, default=30)
    args = parse.parse_args(argv)
    device = torch.device(args.device)
    tree = drawn_tree(args.nodes, args.draft_vocabulary, args.vocabulary, device)
    sampled = 0 if tree.laws is None else len(tree.laws.rows)
    print(f"{len(tree)} nodes, {sampled} of them sampled, {tree.draft_length - 1} levels, {device}")
    logits = (2 * torch.randn(len(tree), args.vocabulary, generator=torch.Generator().manual_seed(1))).to(device)
    probs = Warper(1.0)(logits)
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, Callable[[], object]] = {
        "warping, temperature 1": lambda: Warper(1.0)(logits),
        "warping, temperature 0.7, top_p 0.9": lambda: Warper(0.7, 0.9)(logits),
        "tokenwise": lambda: RULES["tokenwise"].verify(tree, probs, generator),
        "hsd": lambda: RULES["hsd"].verify(tree, probs, generator),
        "hsd, plain recursion": lambda: oracle.outcomes(tree, probs.cpu(), joint=True),
    }
    with torch.inference_mode():
        for name, run in rows.items():
            times = []
            for _ in range(args.repeats):
                clock = Clock(device)
                run()
                times.append(clock.lap())
            print(f"  {name}: {1e3 * statistics.median(times):.2f} ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
