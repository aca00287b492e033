"""Accepted draft tokens a round, trees and rules side by side: ``python -m benchmarks.acceptance``.

Where rounds begin in answers to all MT-Bench questions (first turns) every kind of tree is drafted with the same head
and the same number of nodes, and each rule's accepted length is computed exactly for the tree at hand, so only the
trees' own draws are random. Differences are paired by context; the 95 % intervals resample prompts.

With ``--early`` hybrid trees are there twice, with and without early decisions; and joint verification also with
siblings in the order of their keys, which is lossless too.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.decode import prompts
from eagle.chat_template import add_template_argument, template_arguments
from eagle.decoding.method import DEFAULT_SAMPLING
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.model.loading import add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import CHAIN, DETERMINISTIC, HYBRID, Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.tuning.acceptance import Candidate, expected_lengths
from eagle.verification import RULES, Plan, Rule

RULE_NAMES = ("tokenwise", "hsd")
EARLY, BY_KEY = "hybrid, early", "hsd, by key"
RESAMPLES = 2000
QUESTIONS = 80


@dataclass(frozen=True)
class Column:
    """Expected accepted lengths of one kind of tree, rule and size: a list per prompt, an entry per context."""

    tree: str
    rule: str
    nodes: int
    lengths: list[list[float]]

    @property
    def mean(self) -> float:
        """Over all contexts."""
        return sum(map(sum, self.lengths)) / sum(map(len, self.lengths))


class ByKey(DraftTree):
    """A tree whose siblings are verified in the order of their keys."""

    @cached_property
    def children(self) -> list[list[int]]:
        """See ``DraftTree.children``."""
        parents, keys = self.parents.tolist(), self.keys.tolist()
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node in sorted(range(1, len(self)), key=lambda node: -keys[node]):
            children[parents[node]].append(node)
        return children


def by_key(tree: DraftTree, target_probs: Tensor) -> Plan:
    """The plan of ``hsd`` for siblings in the order of their keys."""
    return RULES["hsd"].plan(ByKey(**{each.name: getattr(tree, each.name) for each in fields(tree)}), target_probs)


def measure(
    model: EaModel,
    inputs: Sequence[Tensor],
    shapes: dict[str, TreeShape],
    sizes: tuple[int, ...],
    draws: int,
    warper: Warper,
    contexts: int,
    every: int,
) -> list[Column]:
    """Draft and verify in all contexts.

    Args:
        model: the pair.
        inputs: prompts, (1, n) each.
        shapes: of each kind of tree, of the largest size; a chain has one size only.
        sizes: values of ``total_token``.
        draws: trees of each kind that samples, in each context.
        warper: of the texts and the laws.
        contexts: of each prompt, at most.
        every: rounds from one context to the next.
    """
    usual = tuple(RULES[name] for name in RULE_NAMES)
    rules = {
        kind: (*usual, Rule(BY_KEY, by_key, True)) if EARLY in shapes and kind == HYBRID else usual for kind in shapes
    }
    candidates = {
        kind: Candidate(model.drafter, shape, rules[kind], (shape.total_token,) if kind == CHAIN else sizes, draws)
        for kind, shape in shapes.items()
    }
    columns = {
        (kind, rule.name, size): Column(kind, rule.name, size - 1, [])
        for kind, candidate in candidates.items()
        for rule in candidate.rules
        for size in candidate.sizes
    }
    generator = torch.Generator().manual_seed(0)
    for prompt in tqdm(inputs, unit="prompt", dynamic_ncols=True):
        for column in columns.values():
            column.lengths.append([])
        for measured in expected_lengths(
            model.target,
            prompt,
            list(candidates.values()),
            warper,
            contexts,
            every,
            model.stop_ids(),
            generator,
        ):
            for (kind, candidate), values in zip(candidates.items(), measured, strict=True):
                for rule, by_size in zip(candidate.rules, values.lengths, strict=True):
                    for size, length in zip(candidate.sizes, by_size, strict=True):
                        columns[kind, rule.name, size].lengths[-1].append(length)
    return list(columns.values())


def gain(base: Column, other: Column) -> tuple[float, float, float]:
    """Relative difference of the means in per cent, and its 95 % interval from resampling prompts."""
    source = random.Random(0)  # noqa: S311  # resampling, not secrets
    sums = [(sum(a), sum(b)) for a, b in zip(base.lengths, other.lengths, strict=True)]

    def relative(picked: Sequence[tuple[float, float]]) -> float:
        return 100 * (sum(b for _, b in picked) / sum(a for a, _ in picked) - 1)

    drawn = sorted(relative(source.choices(sums, k=len(sums))) for _ in range(RESAMPLES))
    return relative(sums), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]


def report(title: str, columns: list[Column]) -> None:
    """Print a table, each row beside EAGLE-3 of as many nodes and beside the token-wise rule on the same trees."""
    print(f"\n{title}: {sum(map(len, columns[0].lengths))} contexts of {len(columns[0].lengths)} prompts")
    found = {(column.tree, column.rule, column.nodes): column for column in columns}
    ordered = any(column.rule == BY_KEY for column in columns)
    print(
        f"{'tree':<14}{'rule':<13}{'nodes':>6}{'accepted':>10}  {'over EAGLE-3':<26}{'over token-wise':<26}"
        + "over siblings by key" * ordered
    )
    for column in columns:
        eagle = found.get((DETERMINISTIC, "tokenwise", column.nodes))
        plain = found.get((HYBRID, BY_KEY, column.nodes)) if column.tree in (HYBRID, EARLY) else None
        cells = [
            "" if base is None or base is column else "{:+.1f} % ({:+.1f} to {:+.1f})".format(*gain(base, column))
            for base in (eagle, found[column.tree, "tokenwise", column.nodes], plain)
        ]
        print(
            f"{column.tree:<14}{column.rule:<13}{column.nodes:>6}{column.mean:>10.3f}  "
            f"{cells[0]:<26}{cells[1]:<26}{cells[2]}".rstrip()
        )


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_arguments(parse)
    parse.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.7, 0.3])
    parse.add_argument("--top_p", "--top-p", type=float, default=0.0)
    parse.add_argument("--nodes", type=int, nargs="+", default=[16, 32], help="of a tree, its root not counted")
    parse.add_argument("--levels", type=int, default=6, help="below the root; also the length of the chain")
    parse.add_argument("--top-k", type=int, default=10)
    parse.add_argument("--threshold", type=float, default=DEFAULT_SAMPLING.threshold)
    parse.add_argument("--rho", type=float, default=DEFAULT_SAMPLING.rho)
    parse.add_argument("--samples", type=int, default=DEFAULT_SAMPLING.samples)
    parse.add_argument("--early", type=float, help="key from which nodes are decided on early, at temperature 1")
    parse.add_argument("--early-nodes", type=int, default=Sampling.early_nodes)
    parse.add_argument("--contexts", type=int, default=9, help="of each of the 80 prompts")
    parse.add_argument(
        "--draws",
        type=int,
        nargs="+",
        default=[3],
        help="trees of each kind that samples, in each context: one number, or one for each temperature",
    )
    parse.add_argument("--every", type=int, default=4, help="rounds from one context to the next")
    add_template_argument(parse)
    args = parse.parse_args(argv)
    arguments = template_arguments(args.chat_template_kwargs)
    if min(*args.nodes, *args.draws, args.levels, args.contexts, args.every) < 1:
        raise InputError("--nodes, --levels, --contexts, --draws and --every must be 1 or more")
    draws = args.draws * len(args.temperature) if len(args.draws) == 1 else args.draws
    if len(draws) != len(args.temperature):
        raise InputError(f"--draws takes one number, or as many as --temperature ({len(args.temperature)}): {draws}")
    model = load(pair_of(args))
    sizes = tuple(nodes + 1 for nodes in sorted(args.nodes))
    plain = TreeShape(sizes[-1], args.levels - 1, args.top_k)
    shapes = {
        DETERMINISTIC: plain,
        HYBRID: replace(plain, sampling=Sampling(args.threshold, args.rho, args.samples)),
        CHAIN: TreeShape.chain(args.levels),
    }
    if args.early is not None:
        early = Sampling(args.threshold, args.rho, args.samples, early=args.early, early_nodes=args.early_nodes)
        shapes[EARLY] = replace(plain, sampling=early)
    inputs = prompts(model, QUESTIONS, arguments)
    print(f"{model.target.dtype}, {model.device}, {shapes[HYBRID]}")
    for temperature, of_temperature in zip(args.temperature, draws, strict=True):
        warper = Warper(temperature, args.top_p)
        title = f"T={temperature}" + (f", top_p={args.top_p}" if 0 < args.top_p < 1 else "")
        report(title, measure(model, inputs, shapes, sizes, of_temperature, warper, args.contexts, args.every))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
