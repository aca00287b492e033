"""A draft model's trees beside each other, and beside transformers' own: ``python -m benchmarks.draft_model``.

Two comparisons on the same prompts:

* how much is accepted of K i.i.d. chains and of hybrid trees with as many different nodes, in exact expectation given
  each tree, on contexts of the target's own texts;
* ``generate(assistant_model=...)`` of transformers and ``draft/chain:tokenwise``, accepted length and tokens a second,
  taking turns.

Intervals (95 %) resample prompts.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from eagle import assets
from eagle.chat_template import chat_ids
from eagle.data.questions import load_questions
from eagle.decoding.info import DecodingInfo
from eagle.decoding.method import DEFAULT_SAMPLING, DRAFT_MODEL
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.target.base import load_base
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.tuning.acceptance import Candidate, expected_lengths
from eagle.verification import RULES

RESAMPLES = 2000
# Rounds from one context to the next.
EVERY = 4

Pairs = list[tuple[float, float]]
"""For each prompt a sum and what it is to be divided by."""


def interval(pairs: Sequence[Pairs], figure: Callable[[Sequence[float]], float]) -> tuple[float, float, float]:
    """A figure of ratios of sums, and its interval from resampling prompts.

    Args:
        pairs: of each method, a pair for every prompt.
        figure: of the methods' ratios.
    """
    source = random.Random(0)  # noqa: S311  # resampling, not secrets
    count = len(pairs[0])

    def of(picked: Sequence[int]) -> float:
        return figure([sum(each[i][0] for i in picked) / sum(each[i][1] for i in picked) for each in pairs])

    drawn = sorted(of(source.choices(range(count), k=count)) for _ in range(RESAMPLES))
    return of(range(count)), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]


def shown(found: tuple[float, float, float], form: str = "{:.3f}") -> str:
    """``figure (low to high)``."""
    return "{} ({} to {})".format(*map(form.format, found))


def of_as_many_nodes(model: EaModel, inputs: Sequence[Tensor], args: argparse.Namespace) -> None:
    """Print what hybrid trees of so many nodes accept beside ``paths``."""
    drafter = model.offers[DRAFT_MODEL].drafter
    levels = args.gamma
    paths = TreeShape.several_paths(args.paths, levels)
    sizes = tuple(range(8, paths.total_token + 1, 4))
    hybrid = TreeShape(sizes[-1], levels - 1, args.top_k, Sampling(args.threshold, args.rho, args.samples))
    rules = (RULES["tokenwise"], RULES["hsd"])
    candidates = [
        Candidate(drafter, paths, rules, (paths.total_token,), args.draws),
        Candidate(drafter, hybrid, rules, sizes, args.draws),
    ]
    lengths: list[list[list[float]]] = []
    nodes: list[float] = []
    generator = torch.Generator().manual_seed(0)
    for prompt in tqdm(inputs, unit="prompt", dynamic_ncols=True):
        found = list(
            expected_lengths(
                model.target,
                prompt,
                candidates,
                Warper(args.temperature),
                args.contexts,
                EVERY,
                model.stop_ids(),
                generator,
            )
        )
        nodes += [of_paths.scored for of_paths, _ in found]
        lengths.append([])
        for of_paths, of_hybrid in found:
            by_size = [value for of_rule in of_hybrid.lengths for value in of_rule]
            lengths[-1].append([of_paths.lengths[0][0], of_paths.lengths[1][0], *by_size])
    mean = sum(nodes) / len(nodes)
    # Never more nodes than the paths have on average.
    place = max(index for index, size in enumerate(sizes) if size <= mean)
    columns = {
        f"draft/paths:tokenwise, K={args.paths}": 0,
        f"draft/paths:hsd, K={args.paths}": 1,
        "draft/hybrid:tokenwise": 2 + place,
        "draft/hybrid:hsd": 2 + len(sizes) + place,
    }
    print(f"{len(nodes)} contexts of {len(inputs)} prompts, {args.paths} paths of {levels}, T={args.temperature}")
    print(f"paths: {mean:.1f} different nodes to score; hybrid trees: {sizes[place]} (the root included)")
    of = {
        name: [(sum(each[column] for each in prompt), float(len(prompt))) for prompt in lengths]
        for name, column in columns.items()
    }
    first = next(iter(of.values()))
    for name, pairs in of.items():
        accepted = shown(interval([pairs], lambda ratios: ratios[0]))
        more = interval([first, pairs], lambda ratios: ratios[1] - ratios[0])
        print(f"{name:<32}{accepted:<28} over the first: {shown(more, '{:+.3f}')}")


class Counted:
    """A model whose forwards are counted."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.count = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.count += 1


def beside_transformers(
    model: EaModel, choice: ModelChoice, inputs: Sequence[Tensor], args: argparse.Namespace
) -> None:
    """Print accepted length and tokens a second of both."""
    where: dict[str, Any] = {"dtype": model.target.dtype, "device_map": {"": model.device}}
    stock = load_base(assets.resolve_base(choice.base_model_path), **where)
    assistant = load_base(assets.resolve_base(choice.draft_model_path), "the draft model", **where)
    assistant.generation_config.num_assistant_tokens = args.gamma
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    counted = Counted(stock)
    chain = TreeShape.chain(args.gamma)
    rounds: tuple[Pairs, Pairs] = ([], [])
    speeds: tuple[Pairs, Pairs] = ([], [])

    def theirs(prompt: Tensor, number: int) -> tuple[int, int]:
        torch.manual_seed(number)
        counted.count = 0
        ids = stock.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            assistant_model=assistant,
            do_sample=True,
            temperature=args.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=args.new_tokens,
        )
        return ids.shape[1] - prompt.shape[1], counted.count

    def ours(prompt: Tensor, number: int) -> tuple[int, int]:
        generator = torch.Generator().manual_seed(number)
        logged = model.eagenerate(
            prompt,
            args.temperature,
            max_new_tokens=args.new_tokens,
            log=True,
            verifier="tokenwise",
            tree=chain,
            drafter=DRAFT_MODEL,
            generator=generator,
        )
        _, tokens, _, info = cast("tuple[Tensor, int, int, DecodingInfo]", logged)
        # The prefill is a forward, too, and emits a token.
        return tokens, 1 + len(info["tree_time"])

    for number, prompt in enumerate(tqdm([inputs[0], *inputs], unit="prompt", dynamic_ncols=True)):
        for place, decode in sorted(enumerate((theirs, ours)), reverse=bool(number % 2)):
            began = time.perf_counter()
            tokens, forwards = decode(prompt, number)
            seconds = time.perf_counter() - began
            if number:
                # The first prompt warms up.
                rounds[place].append((float(tokens), float(forwards)))
                speeds[place].append((float(tokens), seconds))
    print(f"{len(inputs)} prompts, {args.new_tokens} new tokens, {args.gamma} drafted tokens a round")
    for name, mine, speed in zip(("transformers assisted", "draft/chain:tokenwise"), rounds, speeds, strict=True):
        block = shown(interval([mine], lambda ratios: ratios[0]))
        print(
            f"{name:<24}tokens a target forward {block}, tokens/s {shown(interval([speed], lambda r: r[0]), '{:.2f}')}"
        )
    longer = interval(rounds, lambda ratios: ratios[1] - ratios[0])
    faster = interval(speeds, lambda ratios: ratios[1] / ratios[0])
    print(f"ours less theirs: {shown(longer, '{:+.3f}')} tokens a forward; tokens/s ours over theirs {shown(faster)}")


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_arguments(parse)
    parse.add_argument("--question-file", type=Path, required=True, help="first turns are the prompts")
    parse.add_argument("--prompts", type=int, default=20)
    parse.add_argument("--temperature", type=float, default=1.0)
    parse.add_argument("--gamma", type=int, default=10, help="length of a chain")
    parse.add_argument("--paths", type=int, default=11)
    parse.add_argument("--top-k", type=int, default=10, help="of the hybrid trees, as the next three")
    parse.add_argument("--threshold", type=float, default=DEFAULT_SAMPLING.threshold)
    parse.add_argument("--rho", type=float, default=DEFAULT_SAMPLING.rho)
    parse.add_argument("--samples", type=int, default=DEFAULT_SAMPLING.samples)
    parse.add_argument("--contexts", type=int, default=4, help="of each prompt")
    parse.add_argument("--draws", type=int, default=2, help="trees of each kind in each context")
    parse.add_argument("--new-tokens", type=int, default=64)
    parse.add_argument("--only", choices=("nodes", "peer"), help="one of the comparisons")
    args = parse.parse_args(argv)
    if args.draft_model_path is None:
        raise InputError("a draft model is needed: --draft-model-path")
    if min(args.prompts, args.gamma, args.paths, args.contexts, args.draws, args.new_tokens) < 1:
        raise InputError("--prompts, --gamma, --paths, --contexts, --draws and --new-tokens must be 1 or more")
    choice = pair_of(args)
    model = load(choice)
    tokenizer = model.get_tokenizer()
    inputs = [
        chat_ids(tokenizer, [{"role": "user", "content": question.turns[0]}]).to(model.device)
        for question in load_questions(args.question_file)[: args.prompts]
    ]
    if args.only != "peer":
        of_as_many_nodes(model, inputs, args)
    if args.only != "nodes":
        beside_transformers(model, choice, inputs, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
