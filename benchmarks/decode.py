"""Autoregressive decoding, EAGLE-3 and EAGLE-3 + HSD side by side: ``python -m benchmarks.decode``.

The methods answer the same prompts in turn, in one process, each time another one first, so drift of the machine hits
all. Each has the tree that is stored for it, or the one given. Reported: tokens/s (prefill included), speed-up with a
95 % bootstrap interval over prompts, tau, where a round's time goes, how it grows with context, what a draft level
costs, and the peak of memory.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from eagle import assets
from eagle.chat_template import (
    TemplateArguments,
    add_template_argument,
    chat_ids,
    require_chat_template,
    template_arguments,
)
from eagle.clock import Clock
from eagle.data.questions import load_questions
from eagle.decoding.decoding import Decoding
from eagle.decoding.info import DecodingInfo
from eagle.decoding.method import DEFAULT_SAMPLING
from eagle.decoding.speculation import Speculation
from eagle.decoding.stored_trees import form_of
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.target.packed import packed_bytes
from eagle.target.text import Text
from eagle.tree.draft_tree import root_only
from eagle.tree.shape import DETERMINISTIC, HYBRID, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES

RESAMPLES = 2000


@dataclass
class Method:
    """What one method did, an entry per prompt."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    infos: list[DecodingInfo] = field(default_factory=list)

    def tau(self) -> float:
        """Accepted tokens a round, plus one."""
        lengths = [length for info in self.infos for length in info["accept_length"]]
        return 1 + sum(lengths) / max(len(lengths), 1)


def prompts(model: EaModel, count: int, arguments: TemplateArguments | None) -> list[Tensor]:
    """First turns of evenly spread MT-Bench questions, through the chat template."""
    questions = load_questions(assets.mt_bench_questions())
    tokenizer = model.get_tokenizer()
    require_chat_template(tokenizer, model.base_model_path, arguments)
    step = max(1, len(questions) // count)
    return [
        chat_ids(tokenizer, [{"role": "user", "content": question.turns[0]}], arguments).to(model.device)
        for question in questions[::step][:count]
    ]


Contestants = dict[str, tuple[EaModel, TreeShape | None]]
"""Of each method its pair and its trees; None decodes autoregressively."""


def contest(entries: Mapping[str, tuple[EaModel, ModelChoice]], temperature: float) -> Contestants:
    """Autoregressive decoding with the first entry's target, then the entries with their trees at a temperature.

    At 0 HSD is EAGLE-3, so entries with hybrid trees are left out.
    """
    contestants: Contestants = {}
    for name, (model, choice) in entries.items():
        contestants.setdefault("autoregressive", (model, None))
        if temperature > 0 or choice.kind == DETERMINISTIC:
            contestants[name] = (model, replace(choice, temperature=temperature).shape(form_of(model.target)))
    return contestants


def measure(contestants: Contestants, inputs: list[Tensor], temperature: float, new_tokens: int) -> list[Method]:
    """Run all methods over all prompts."""
    methods = [Method() for _ in contestants]
    turns = [(method, model, shape) for method, (model, shape) in zip(methods, contestants.values(), strict=True)]
    for number, prompt in enumerate(inputs):
        arguments: dict[str, Any] = {
            "temperature": temperature,
            "max_new_tokens": new_tokens,
            "max_length": prompt.shape[1] + new_tokens,
            "log": True,
        }
        first = number % len(turns)
        for method, model, shape in turns[first:] + turns[:first]:
            generator = torch.Generator().manual_seed(number)
            clock = Clock(model.device)
            if shape is None:
                logged = model.naivegenerate(prompt, **arguments, generator=generator)
            else:
                hsd = shape.sampling is not None
                logged = model.eagenerate(prompt, **arguments, generator=generator, hsd=hsd, tree=shape)
            method.seconds.append(clock.lap())
            _, tokens, _, info = cast("tuple[Tensor, int, int, DecodingInfo]", logged)
            method.tokens.append(tokens)
            method.infos.append(info)
    return methods


def ratio(slow: Method, fast: Method) -> str:
    """How many times faster ``fast`` is, all tokens together, with a 95 % interval from resampling prompts."""
    prompts_ = list(zip(slow.seconds, slow.tokens, fast.seconds, fast.tokens, strict=True))
    source = random.Random(0)  # noqa: S311  # resampling, not secrets

    def speed_up(picked: Sequence[tuple[float, int, float, int]]) -> float:
        slow_seconds, slow_tokens, fast_seconds, fast_tokens = (sum(values) for values in zip(*picked, strict=True))
        return (slow_seconds / slow_tokens) / (fast_seconds / fast_tokens)

    drawn = sorted(speed_up(source.choices(prompts_, k=len(prompts_))) for _ in range(RESAMPLES))
    return f"{speed_up(prompts_):.2f}x ({drawn[int(0.025 * RESAMPLES)]:.2f}-{drawn[int(0.975 * RESAMPLES)]:.2f})"


def report(temperature: float, contestants: Contestants, methods: list[Method]) -> None:
    """Print one temperature's comparison, the trees and the breakdown of the rounds."""
    print(f"T={temperature}")
    names = list(contestants)
    for place, (name, method) in enumerate(zip(names, methods, strict=True)):
        rate = sum(method.tokens) / sum(method.seconds)
        line = f"  {name}: {rate:.1f} tok/s"
        if place:
            line += f", {ratio(methods[0], method)} {names[0]}, tau {method.tau():.2f}"
        for earlier in range(1, place):
            line += f", {ratio(methods[earlier], method)} {names[earlier]}"
        print(line)
        if place:
            print(f"    {contestants[name][1]}")
            print(f"    a round: {breakdown(method)}")


def breakdown(method: Method) -> str:
    """Where the rounds' time goes."""
    infos = method.infos
    stages = {
        "target forward": [seconds for info in infos for seconds in info["tree_time"]],
        "warping and verification": [seconds for info in infos for seconds in info["eval_time"]],
        "commit and drafting": [seconds for info in infos for seconds in info["update_time"]],
    }
    prefill = sum(info["reset_tree_time"] + info["kv_time"] for info in infos)
    rest = sum(method.seconds) - prefill - sum(sum(values) for values in stages.values())
    rounds = len(stages["target forward"])
    means = {name: sum(values) / rounds for name, values in stages.items()} | {"rest": rest / rounds}
    whole = sum(means.values())
    return ", ".join(f"{name} {1e3 * value:.2f} ms ({value / whole:.1%})" for name, value in means.items())


@torch.inference_mode()
def stages(model: EaModel, shape: TreeShape, context: int, repeats: int, temperature: float) -> dict[str, float]:
    """Median seconds of each stage of a round behind ``context`` committed tokens, of trees as large as they get: of
    the made-up text nothing is likely."""
    shape = replace(shape, least=None, least_expanded=None)
    target, warper = model.target, Warper(temperature)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(target.vocab_size, (1, context), generator=generator)
    rule = RULES["tokenwise" if shape.sampling is None else "hsd"]
    text = Text(prompt, warper, context + 200, generator=generator)
    decoding = Decoding(target, Speculation(model.drafter, shape, rule), text)
    # What the drafter reads in the first round is the whole prompt.
    decoding.step()
    cache, tree = decoding.cache, decoding.tree
    plain = target.new_cache(context + 8)
    target.prefill(prompt, plain, features=False)
    times: dict[str, list[float]] = {}
    shape = decoding.shape
    one_level = replace(shape, depth=0)
    levels = shape.levels(room=100)
    for _ in range(repeats):
        clock = Clock(model.device)

        def lap(stage: str, clock: Clock = clock) -> None:
            times.setdefault(stage, []).append(clock.lap())

        target.score(root_only(1), plain, features=False)
        lap("one autoregressive target forward")
        plain.keep(())
        clock.lap()
        scores = target.score(tree, cache)
        lap(f"target forward over {len(tree)} nodes")
        decoding.verify(tree, scores.logits)
        lap("warping and verification")
        committed = cache.committed
        path = [0, len(tree) - 1]
        cache.keep(path)
        lap("commit, moving a node")
        for layer in cache.tree_layers:
            layer.length = committed
        cache.committed = committed
        clock.lap()
        decoding.drafting.draft(shape, 100, decoding.chance)
        lap(f"drafting, {levels} level{'s' if levels > 1 else ''}")
        decoding.drafting.draft(one_level, 100, decoding.chance)
        lap("drafting, first level only")
    return {stage: statistics.median(values) for stage, values in times.items()}


@torch.inference_mode()
def level_of_ten(model: EaModel, context: int, repeats: int) -> tuple[float, float]:
    """Median seconds of one more draft level of 10 nodes, the difference of trees of 3 and 2 expansions, without
    sampled children and with the default ones."""
    generator = torch.Generator().manual_seed(0)
    kinds = [TreeShape(60, depth, 10, sampling) for sampling in (None, DEFAULT_SAMPLING) for depth in (2, 3)]
    prompt = torch.randint(model.target.vocab_size, (1, context), generator=generator)
    text = Text(prompt, Warper(1.0), context + 200, generator=generator)
    decoding = Decoding(model.target, Speculation(model.drafter, kinds[-1], RULES["hsd"]), text)
    decoding.step()
    times: list[list[float]] = [[] for _ in kinds]
    for _ in range(repeats):
        for shape, measured in zip(kinds, times, strict=True):
            clock = Clock(model.device)
            decoding.drafting.draft(shape, 100, decoding.chance)
            measured.append(clock.lap())
    medians = [statistics.median(measured) for measured in times]
    return medians[1] - medians[0], medians[3] - medians[2]


def peak_memory(device: torch.device) -> tuple[str, float]:
    """What was measured, and its peak in MB: the process on a CPU, torch's allocations on a GPU."""
    if device.type == "cuda":
        return "peak GPU memory", torch.cuda.max_memory_allocated(device) / 1e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return "peak memory of the process", kilobytes * 1024 / 1e6


def weights_megabytes(model: EaModel) -> float:
    """Of the base model (tied tables once, where the output layer was not packed) and the head."""
    modules = [model.base_model, *([] if model.ea_layer is None else [model.ea_layer])]
    tensors = [parameter for module in modules for parameter in module.parameters()]
    loose = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    return (sum(loose.values()) + sum(packed_bytes(module) for module in modules)) / 1e6


def cache_megabytes(model: EaModel, capacity: int) -> float:
    """Of the target's key-value cache for so many positions."""
    cache = model.target.new_cache(capacity)
    with torch.inference_mode():
        model.target.prefill(torch.zeros(1, 1, dtype=torch.int64), cache)
    return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in cache.tree_layers) / 1e6


def print_memory(model: EaModel, context: int, before: float) -> None:
    """Decode behind a long prompt, then print the peak of memory so far beside what has to be there."""
    prompt = torch.randint(model.target.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    model.eagenerate(prompt.to(model.device), temperature=1.0, max_new_tokens=32, max_length=context + 32)
    what, peak = peak_memory(model.device)
    weights, cache = weights_megabytes(model), cache_megabytes(model, context + 32)
    print(
        f"{what} with up to {context} tokens of context: {peak:.0f} MB = weights {weights:.0f} + cache {cache:.0f} "
        f"+ {peak - weights - cache:.0f} (of which the interpreter and the libraries {before:.0f})"
    )


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_arguments(parse)
    for kind in ("eagle3", "hsd"):
        parse.add_argument(f"--{kind}-tree", type=int, nargs=3, metavar=("TOTAL_TOKEN", "DEPTH", "TOP_K"))
    parse.add_argument("--sampling", type=float, nargs=3, metavar=("THRESHOLD", "RHO", "SAMPLES"))
    parse.add_argument("--prompts", type=int, default=40)
    add_template_argument(parse)
    parse.add_argument("--new-tokens", type=int, default=96)
    parse.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parse.add_argument("--contexts", type=int, nargs="*", default=[100, 2000])
    parse.add_argument("--repeats", type=int, default=40)
    args = parse.parse_args(argv)
    arguments = template_arguments(args.chat_template_kwargs)
    before = peak_memory(torch.device("cpu"))[1]
    choice = pair_of(args)
    model = load(choice)
    entries = {}
    for name, kind, given in (("EAGLE-3", DETERMINISTIC, args.eagle3_tree), ("HSD", HYBRID, args.hsd_tree)):
        entry = replace(choice, kind=kind)
        if given:
            entry = replace(entry, **dict(zip(("total_token", "depth", "top_k"), given, strict=True)))
        if args.sampling and kind == HYBRID:
            threshold, rho, samples = args.sampling
            entry = replace(entry, sampling={"threshold": threshold, "rho": rho, "samples": int(samples)})
        entries[name] = (model, entry)
    print(
        f"{args.base_model_path or assets.DEFAULT_PAIR}, {model.target.dtype}, {model.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    inputs = prompts(model, args.prompts, arguments)
    measure(contest(entries, 0.0), inputs[:1], 0.0, 16)
    for temperature in args.temperature:
        racing = contest(entries, temperature)
        report(temperature, racing, measure(racing, inputs, temperature, args.new_tokens))
    print_memory(model, max([*args.contexts, 100]), before)
    for context in args.contexts:
        for name, (_, shape) in contest(entries, 1.0).items():
            if shape:
                print_round(name, stages(model, shape, context, args.repeats, temperature=1.0), context)
        plain, sampled = level_of_ten(model, context, args.repeats)
        print(
            f"one draft level of 10 nodes at {context} committed tokens: deterministic {1e3 * plain:.2f} ms, "
            f"hybrid {1e3 * sampled:.2f} ms ({sampled / plain:.2f}x)"
        )


def print_round(name: str, measured: dict[str, float], context: int) -> None:
    """Print the stages of a round."""
    apart = ("one autoregressive target forward", "drafting, first level only")
    whole = sum(seconds for stage, seconds in measured.items() if stage not in apart)
    print(f"a round of {name} at {context} committed tokens: {1e3 * whole:.1f} ms")
    for stage, seconds in measured.items():
        print(f"  {stage}: {1e3 * seconds:.2f} ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
