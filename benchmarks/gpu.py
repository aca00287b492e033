"""What a round costs on this card, in one table: ``python -m benchmarks.gpu``, or ``make gpu``.

A pair of Llama-3.1-8B's sizes with random weights in bfloat16 (how long a round takes does not depend on what the
weights are) and an EAGLE-3 head of the published sizes: the stages of a round with EAGLE-3 and with HSD at temperature
0 and 1, for several sizes of the tree, beside a round of autoregressive decoding and the time it takes to read the
weights once, which no round can beat. The same for the embedded pair where its files are on this machine, and its
tokens a second. The tests that need a GPU are run first. No network is used, and nothing is begun for which the time
may not last. The table goes to standard output and into a file.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.decode import contest, measure, prompts, ratio, stages, weights_megabytes
from eagle.clock import Clock
from eagle.decoding.decoding import Decoding
from eagle.decoding.method import DEFAULT_SAMPLING, HEAD
from eagle.decoding.speculation import Offer, Speculation
from eagle.devices import best_device
from eagle.drafters.eagle3.config import default_feature_layers
from eagle.drafters.eagle3.drafter import HeadDrafter
from eagle.drafters.eagle3.head import Eagle3Head, HeadConfig
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, load
from eagle.program import run_program
from eagle.target.compiling import OFF
from eagle.target.target import Target
from eagle.target.text import Text
from eagle.tree.shape import DETERMINISTIC, HYBRID, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES

CONTEXT = 512
# Rounds that are not measured: the first ones read the prompt and are recorded.
WARM_UP = 5
PROMPTS, NEW_TOKENS = 20, 128
ALONE = "one autoregressive target forward"
# What is read in one measurement of the memory's speed.
MEGABYTES = {"cuda": 2048, "mps": 512, "cpu": 64}
# Seconds that a section may take; it is left out where less is left.
TESTS, PAIR, SPEED = 150.0, 120.0, 90.0


@dataclass(frozen=True)
class Sizes:
    """The sizes of a pair.

    Attributes:
        name: for the table.
        hidden: width of a hidden state.
        intermediate: of the feed-forward network, of the head's too.
        layers: of the target.
        heads: of the queries.
        kv_heads: of keys and values.
        vocabulary: the target's.
        draft_vocabulary: the head's.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    draft_vocabulary: int


LLAMA_8B = Sizes("Llama-3.1-8B's sizes", 4096, 14336, 32, 32, 8, 128_256, 32_000)
SMALL = Sizes("a small pair", 64, 128, 6, 4, 2, 1000, 500)


def random_pair(sizes: Sizes, device: str, dtype: torch.dtype) -> EaModel:
    """A pair of these sizes, its weights drawn at random on the device."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.hidden // sizes.heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    features = default_feature_layers(sizes.layers)
    torch.manual_seed(0)
    with torch.device(device):
        target = Target(AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), features)
        head = Eagle3Head(HeadConfig(config, sizes.draft_vocabulary, sizes.hidden, features)).to(dtype).eval()
        ids = torch.randperm(sizes.vocabulary)[: sizes.draft_vocabulary].sort().values
        head.d2t = ids - torch.arange(sizes.draft_vocabulary)
    head.embedding = target.embedding.detach()
    head.join()
    return EaModel(target, {HEAD: Offer(HeadDrafter(head), TreeShape(60, 7, 10))}, sizes.name)


def reading_seconds(model: EaModel) -> float:
    """How long it takes to read the target's weights once, at the speed at which this device copies memory."""
    device = model.device
    source = torch.ones(MEGABYTES.get(device.type, 64) * 2**20, dtype=torch.uint8, device=device)
    copy, times = torch.empty_like(source), []
    for _ in range(8):
        clock = Clock(device)
        copy.copy_(source)
        times.append(clock.lap())
    # A copy reads every byte and writes it.
    megabytes = weights_megabytes(EaModel(model.target, {}, ""))
    return statistics.median(times) / (2 * source.numel()) * megabytes * 1e6


def ways(model: EaModel) -> Iterator[str]:
    """The ways in which rounds are run, the model set to each in turn."""
    yield "eager"
    model.compile()
    target, drafter = model.target, model.drafter
    if target.compiled is None or not isinstance(drafter, HeadDrafter):
        return
    recorded = target.recorded, drafter.recorded
    target.recorded = drafter.recorded = None
    yield "compiled"
    target.recorded, drafter.recorded = recorded
    if None not in recorded:
        yield "recorded"


def contestants(nodes: int, depth: int) -> Iterator[tuple[str, float, TreeShape]]:
    """Methods, temperatures and shapes of trees."""
    for temperature in (0.0, 1.0):
        yield "EAGLE-3", temperature, TreeShape(nodes, depth, 10)
    yield "HSD", 1.0, TreeShape(nodes, depth, 10, DEFAULT_SAMPLING)


@torch.inference_mode()
def whole_round(model: EaModel, shape: TreeShape, repeats: int, temperature: float) -> float:
    """Median seconds of a round as it is decoded, behind the same context."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.target.vocab_size, (1, CONTEXT), generator=generator)
    limit = CONTEXT + (repeats + WARM_UP) * (shape.depth + 3)
    rule = RULES["tokenwise" if shape.sampling is None else "hsd"]
    text = Text(prompt, Warper(temperature), limit, generator=generator)
    decoding, seconds = Decoding(model.target, Speculation(model.drafter, shape, rule), text), []
    for _ in range(repeats + WARM_UP):
        clock = Clock(model.device)
        decoding.step()
        seconds.append(clock.lap())
    decoding.stop()
    return statistics.median(seconds[WARM_UP:])


def line(name: str, model: EaModel, method: str, temperature: float, shape: TreeShape, repeats: int) -> str:
    """A line of the table: stages of a round, in milliseconds."""
    found = stages(model, shape, CONTEXT, repeats, temperature)
    forward, verification, commit, drafting = (
        next(seconds for stage, seconds in found.items() if stage.startswith(begin))
        for begin in ("target forward over", "warping", "commit", f"drafting, {shape.levels(100)}")
    )
    whole, reading = whole_round(model, shape, repeats, temperature), reading_seconds(model)
    cells = (found[ALONE], forward, drafting, verification, commit, whole, reading)
    return (
        f"| {name} | {method} | {temperature:g} | {shape.total_token} | "
        + " | ".join(f"{1e3 * seconds:.2f}" for seconds in cells)
        + f" | {whole / reading:.2f}x |"
    )


def rounds(name: str, model: EaModel, depth: int, sizes: Sequence[int], repeats: int) -> Iterator[str]:
    """Lines of the table: the first size in all ways, the others in the last."""
    for way in ways(model):
        for contestant in contestants(sizes[0], depth):
            yield line(f"{name}, {way}", model, *contestant, repeats)
    for nodes in sizes[1:]:
        for contestant in contestants(nodes, depth):
            yield line(f"{name}, {way}", model, *contestant, repeats)


HEADER = (
    "| pair | method | T | nodes | one token | target forward | drafting | verification | commit | whole round | "
    "weights read | round / weights read |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def speeds(model: EaModel, choice: ModelChoice) -> Iterator[str]:
    """Lines: tokens a second of the embedded pair, and over autoregressive decoding."""
    kinds = {"EAGLE-3": DETERMINISTIC, "HSD": HYBRID}
    entries = {name: (model, ModelChoice(device=choice.device, kind=kind)) for name, kind in kinds.items()}
    inputs = prompts(model, PROMPTS, None)
    measure(contest(entries, 1.0), inputs[:1], 1.0, 16)
    for temperature in (0.0, 1.0):
        racing = contest(entries, temperature)
        methods = measure(racing, inputs, temperature, NEW_TOKENS)
        for name, method in zip(racing, methods, strict=True):
            rate = sum(method.tokens) / sum(method.seconds)
            over = (
                "" if method is methods[0] else f", {ratio(methods[0], method)} autoregressive, tau {method.tau():.2f}"
            )
            yield f"- T={temperature:g}, {name}: {rate:.1f} tokens/s{over}"


def tests(seconds: float) -> str:
    """Run the tests that need a GPU; returns what pytest says of them last."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "every_device or recorded", "tests/model", "tests/target"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"not over after {seconds:.0f} s"
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[-1].strip("= ") if lines else f"pytest ended with status {done.returncode}"


def named(device: str) -> str:
    """What the device is called."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device}, {torch.get_num_threads()} threads"


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--device", default=best_device())
    parse.add_argument("--minutes", type=float, default=9.0, help="that all of it may take")
    parse.add_argument("--nodes", type=int, nargs="+", default=[60, 32, 16, 8], help="the most wanted first")
    parse.add_argument("--depth", type=int, default=7)
    parse.add_argument("--repeats", type=int, default=30)
    parse.add_argument("--no-tests", action="store_true", help="leave out the tests that need a GPU")
    parse.add_argument("--small", action="store_true", help="a tiny pair, to try the program")
    parse.add_argument("--out", type=Path, default=Path("gpu.md"))
    args = parse.parse_args(argv)
    if min(args.repeats, args.minutes, *args.nodes) < 1:
        raise InputError("--repeats, --minutes and --nodes must be 1 or more")
    if args.device == "cpu" and not args.small:
        raise InputError("there is no GPU here; --small tries the program on a CPU")
    ends = time.monotonic() + 60 * args.minutes
    args.out.write_text("", encoding="utf-8")

    def say(line: str) -> None:
        print(line, flush=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def left(needed: float, what: str) -> bool:
        enough = ends - time.monotonic() >= needed
        if not enough:
            say(f"\nleft out, the time is up: {what}")
        return enough

    say(f"# {named(args.device)}, torch {torch.__version__}\n")
    if args.device == "cuda" and not args.no_tests and left(TESTS, "the tests that need a GPU"):
        say(f"Tests that need a GPU: {tests(TESTS)}\n")
    sizes, dtype = (SMALL, torch.float32) if args.small else (LLAMA_8B, torch.bfloat16)
    say(f"Milliseconds, medians of {args.repeats}, behind {CONTEXT} tokens, trees of {args.depth + 1} levels.\n")
    say(HEADER)
    with torch.inference_mode():
        for row in rounds(sizes.name, random_pair(sizes, args.device, dtype), args.depth, args.nodes, args.repeats):
            say(row)
            if not left(20.0, "more rounds"):
                break
    if args.small or not left(PAIR, "the embedded pair"):
        return
    choice = ModelChoice(device=args.device, compile=OFF)
    try:
        model = load(choice)
    except InputError as error:
        say(f"\nThe embedded pair is not on this machine: {error}")
        return
    for row in rounds("the embedded pair", model, args.depth, args.nodes[:2], args.repeats):
        say(row)
    if left(SPEED, "tokens a second of the embedded pair"):
        say("")
        for row in speeds(model, choice):
            say(row)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
