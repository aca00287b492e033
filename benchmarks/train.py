"""What training costs: ``python -m benchmarks.train generate``, ``python -m benchmarks.train fit``.

``generate``: new tokens a second of the embedded model's answers to ShareGPT's prompts, reading the prompts included,
and where a step's time goes.
``fit``: answer tokens a second of training a head for the embedded model, by part of a step, and the process's memory.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import torch

from eagle import assets
from eagle.clock import Clock
from eagle.data.conversations import read_conversations
from eagle.identity import base_identity
from eagle.model.loading import existing_device
from eagle.program import run_program
from eagle.target.base import load_base, load_tokenizer
from eagle.target.target import Target
from eagle.train.batches import Document, batch_of, pack
from eagle.train.decode import Batch, Request
from eagle.train.features import Reader
from eagle.train.fit_settings import PRECISIONS, FitSettings
from eagle.train.generate import SORTED_BATCHES, GenerateSettings, encode, in_windows
from eagle.train.initial import new_head, shape_for
from eagle.train.optimizer import Optimizer
from eagle.train.prompts import Excluded, select_prompts
from eagle.train.trainee import Trainee
from eagle.train.vocab import DraftVocabulary, default_size
from eagle.train.workers import BatchPlan, Workers
from eagle.tree.warping import Warper

# Batches before those that are measured: kernels are generated, memory is found.
WARMING = 3


def generate(args: argparse.Namespace) -> None:
    """New tokens a second, while all rows are full and until the last text has ended."""
    settings = GenerateSettings(
        limit=args.prompts, temperatures=(args.temperature,), weights=(1.0,), max_new_tokens=args.new_tokens
    )
    path = assets.resolve_base(None)
    target = Target(load_base(path, dtype="auto", device_map={"": existing_device(args.device)}))
    prompts = select_prompts(read_conversations(None), Excluded(()), settings.seed)
    requests = encode(prompts, load_tokenizer(path), settings, target.context_length)
    for rows, workers in itertools.product(args.rows, args.workers):
        plan = BatchPlan(path, base_identity(path), "auto", -(-rows // workers), Warper(1.0), settings.max_new_tokens)
        decoder: Batch | Workers = Workers(plan, workers) if workers > 1 else plan.batch(target)
        start = full = 0.0
        full_tokens = 0

        def wanted(decoder: Batch | Workers = decoder, rows: int = rows) -> Iterator[Request]:
            nonlocal start, full, full_tokens
            begun = iter(in_windows(requests, SORTED_BATCHES * rows))
            # Processes are fed one request ahead: a third one is asked for when a model has been loaded for the first.
            yield from itertools.islice(begun, 2)
            start = time.perf_counter()
            yield from begun
            full, full_tokens = time.perf_counter() - start, decoder.made

        texts = list(decoder.decode(wanted()))
        seconds = time.perf_counter() - start
        made, processes = decoder.made, f"{workers} process{'es' if workers > 1 else ''}"
        print(
            f"{rows} rows in {processes}: {full_tokens / full:.0f} new tokens/s while all are full, "
            f"{made / seconds:.0f} until the end; {len(texts)} answers of {made / len(texts):.0f} tokens on average "
            f"to prompts of {sum(len(request.prompt) for request in requests) / len(requests):.0f}, {seconds:.0f} s"
        )


def fit(args: argparse.Namespace) -> None:
    """Answer tokens a second: reading by the target, forward, backward and optimizer step of packed batches."""
    settings = FitSettings(
        drafting_steps=args.drafting_steps, batch_tokens=args.batch_tokens, mixed_precision=args.precision
    )
    device = torch.device(existing_device(args.device))
    target = Target(load_base(assets.resolve_base(None), dtype="auto", device_map={"": device}))
    size = default_size(target.vocab_size)
    vocabulary = DraftVocabulary.of(torch.arange(size), target.vocab_size)
    documents = _documents(target.vocab_size, 10 * (WARMING + args.batches))
    head, _ = new_head(target, shape_for(target, size, None, {}), vocabulary, settings.initial, settings.seed)
    reader, trainee = Reader(target, vocabulary.target_ids), Trainee(head, settings)
    optimizer = Optimizer(head, settings.optimizer, 1e-4, 1e-4, settings.weight_decay)
    times: list[list[float]] = []
    tokens = 0

    def step(documents: list[Document]) -> int:
        clock = Clock(device)
        batch = batch_of(documents).to(device)
        reading = reader.read(batch)
        seconds = [clock.lap()]
        loss, _ = trainee(batch, reading, [len(batch.rows)] * settings.drafting_steps)
        seconds.append(clock.lap())
        loss.backward()
        seconds.append(clock.lap())
        torch.nn.utils.clip_grad_norm_(head.parameters(), settings.clipping)
        optimizer.step(1.0)
        times.append([*seconds, clock.lap()])
        return len(batch.rows)

    packed = pack(documents, settings.batch_tokens, random.Random(0))  # noqa: S311  # an order, not a secret
    batches = [[documents[index] for index in indices] for indices in packed]
    for some in batches[:WARMING]:
        step(some)
    times.clear()
    for some in batches[WARMING : WARMING + args.batches]:
        tokens += step(some)
    parts = [sum(part) for part in zip(*times, strict=True)]
    shares = ", ".join(
        f"{name} {part / sum(parts):.0%}"
        for name, part in zip(("reading", "forward", "backward", "optimizer"), parts, strict=True)
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{tokens / sum(parts):.0f} answer tokens/s over {len(times)} batches of {settings.batch_tokens} tokens, "
        f"{settings.drafting_steps} steps, {args.precision}; {shares}; most memory {memory:.1f} GB"
    )
    if args.profile:
        with torch.profiler.profile() as profiler:
            step(batches[0])
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def _documents(vocabulary: int, count: int) -> list[Document]:
    """Documents as long as answers of the embedded model; what they say does not change how long they take."""
    source = random.Random(0)  # noqa: S311  # a benchmark, not a secret
    documents = []
    for _ in range(count):
        prompt, answer = source.randint(30, 120), source.randint(100, 400)
        documents.append(Document([source.randrange(vocabulary) for _ in range(prompt + answer)], prompt))
    return documents


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("stage", choices=("generate", "fit"))
    parse.add_argument("--device", help="default: the best there is")
    parse.add_argument("--rows", type=int, nargs="+", default=[128], help="generate: answers at a time")
    parse.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="generate: processes, one thread each")
    parse.add_argument("--prompts", type=int, default=256, help="generate: prompts to answer")
    parse.add_argument("--new-tokens", type=int, default=512, help="generate: of an answer at most")
    parse.add_argument("--temperature", type=float, default=1.0, help="generate: of all answers")
    parse.add_argument("--drafting-steps", type=int, default=5, help="fit: of the training-time test")
    parse.add_argument("--batch-tokens", type=int, default=2048, help="fit: of a batch")
    parse.add_argument("--batches", type=int, default=12, help=f"fit: to measure, after {WARMING} more")
    parse.add_argument("--precision", default="bf16", choices=PRECISIONS, help="fit: of the head's products")
    parse.add_argument("--profile", action="store_true", help="fit: print the profiler's table of one more batch")
    args = parse.parse_args(argv)
    {"generate": generate, "fit": fit}[args.stage](args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
