"""Draft heads of one target side by side: ``python -m benchmarks.heads HEAD [HEAD ...]``, the others over the first.

On MT-Bench's first turns: the overlap sum min(p, q) with the target by drafting step, along answers that the target
samples itself at temperature 1, and the exact expected accepted length of trees of both methods; with ``--prompts``
also the speed of decoding with the trees that are stored beside each head. The 95 % intervals resample questions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from benchmarks import decode as speed
from benchmarks.decode import prompts
from eagle import assets
from eagle.chat_template import add_template_argument, template_arguments
from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.head import Eagle3Head
from eagle.errors import InputError
from eagle.evaluation.reading.summary import INTERVAL, resampled
from eagle.model.loading import DTYPES, ModelChoice, load
from eagle.program import run_program
from eagle.target.target import Target
from eagle.train.batches import Document, batch_of
from eagle.train.compare import accepted_lengths
from eagle.train.decode import Batch, Request
from eagle.train.features import Reader
from eagle.train.fit_settings import FitSettings
from eagle.train.trainee import Trainee
from eagle.tree.shape import DETERMINISTIC, HYBRID
from eagle.tree.warping import Warper

QUESTIONS = 80


@dataclass
class Mean:
    """A mean over everything that was seen in some questions: a sum and a count for each question."""

    sums: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Mean:
        """What was seen, a list for each question."""
        return cls([sum(each) for each in values], [len(each) for each in values])

    def resampled(self) -> tuple[float, np.ndarray]:
        """The mean, and those of resampled questions, the same questions for every mean."""
        columns = np.column_stack([self.sums, self.counts])
        drawn = resampled(columns)
        return float(columns[:, 0].sum() / columns[:, 1].sum()), drawn[:, 0] / drawn[:, 1]


def answers(target: Target, questions: Sequence[list[int]], new_tokens: int) -> list[Document]:
    """What the target answers at temperature 1."""
    batch = Batch(target, len(questions), Warper(1.0), target.stop_ids, new_tokens)
    requests = [Request(str(number), ids, 1.0, new_tokens, number) for number, ids in enumerate(questions)]
    texts = sorted(batch.decode(requests), key=lambda text: int(text.request.key))
    return [Document(text.request.prompt + text.tokens, len(text.request.prompt)) for text in texts]


@torch.no_grad()
def overlaps(target: Target, head: Eagle3Head, documents: Sequence[Document], steps: int) -> list[Mean]:
    """Overlaps of a head, for each drafting step."""
    target.feature_layers = head.config.feature_layers
    kernel = target.config._attn_implementation
    reader = Reader(target, head.target_ids)
    trainee = Trainee(head, FitSettings(drafting_steps=steps, mixed_precision="no"))
    means = [Mean() for _ in range(steps)]
    for document in documents:
        batch = batch_of([document]).to(target.device)
        _, sums = trainee(batch, reader.read(batch), [1] * steps)
        for mean, overlap, rows in zip(means, sums[2].tolist(), sums[4].tolist(), strict=True):
            mean.sums.append(overlap)
            mean.counts.append(rows)
    # A reader leaves the target with a kernel for packed documents only.
    target.model.set_attn_implementation(kernel)
    return means


def report(title: str, names: Sequence[str], rows: dict[str, list[Mean]]) -> None:
    """Print a table: of each head the mean with its interval, and what it is over the first's."""
    print(f"\n{title}")
    for what, means in rows.items():
        first, first_drawn = means[0].resampled()
        for name, mean in zip(names, means, strict=True):
            value, drawn = mean.resampled()
            low, high = np.percentile(drawn, INTERVAL)
            line = f"{what:<20}{name:<28}{value:>7.3f} ({low:.3f} to {high:.3f})"
            if mean is not means[0]:
                low, high = np.percentile(100 * (drawn / first_drawn - 1), INTERVAL)
                line += f"   {100 * (value / first - 1):+.1f} % ({low:+.1f} to {high:+.1f})"
            print(line)


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("heads", nargs="+", help="folders or hub ids of heads")
    parse.add_argument("--base-model-path", help="directory or hub id of their target; default: the embedded model")
    parse.add_argument("--dtype", default="auto", choices=DTYPES, help="of the weights")
    parse.add_argument("--device", help="default: the best there is")
    parse.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.0], help="of the trees")
    parse.add_argument("--nodes", type=int, default=16, help="of a tree, its root not counted")
    parse.add_argument("--levels", type=int, default=6, help="of a tree below the root")
    parse.add_argument("--contexts", type=int, default=9, help="of each question")
    parse.add_argument("--draws", type=int, default=4, help="trees in each context, where they are sampled")
    parse.add_argument(
        "--new-tokens",
        type=int,
        default=128,
        help="of an answer that overlaps are measured along, or that --prompts decodes",
    )
    parse.add_argument("--steps", type=int, default=5, help="drafting steps to measure overlaps of")
    parse.add_argument("--prompts", type=int, default=0, help="to decode for the speed of both methods; 0: none")
    add_template_argument(parse)
    args = parse.parse_args(argv)
    arguments = template_arguments(args.chat_template_kwargs)
    if args.prompts < 0:
        raise InputError(f"--prompts must be 0 or more, not {args.prompts}")
    if min(args.nodes, args.levels, args.contexts, args.draws, args.new_tokens, args.steps) < 1:
        raise InputError("--nodes, --levels, --contexts, --draws, --new-tokens and --steps must be 1 or more")
    base = args.base_model_path or assets.DEFAULT_PAIR
    choice = ModelChoice(base_model_path=base, ea_model_path=args.heads[0], dtype=args.dtype, device=args.device)
    model = load(choice)
    target, questions = model.target, [prompt[0].tolist() for prompt in prompts(model, QUESTIONS, arguments)]
    for temperature in args.temperature:
        rows: dict[str, list[Mean]] = {}
        for head in args.heads:
            found = accepted_lengths(
                target,
                load_head(head, target),
                questions,
                args.contexts,
                temperature,
                nodes=args.nodes,
                levels=args.levels,
                draws=args.draws,
            )
            for method, lengths in found.items():
                rows.setdefault(method, []).append(Mean.of(lengths))
        report(f"accepted of trees of {args.nodes} nodes, T={temperature}", args.heads, rows)
    documents = answers(target, questions, args.new_tokens)
    by_head = [overlaps(target, load_head(head, target), documents, args.steps) for head in args.heads]
    rows = {f"step {step + 1}": [means[step] for means in by_head] for step in range(args.steps)}
    report("overlap with the target, T=1", args.heads, rows)
    if args.prompts:
        entries = {}
        for head in args.heads:
            pair = replace(choice, ea_model_path=head)
            loaded = load(pair)
            for name, kind in (("EAGLE-3", DETERMINISTIC), ("HSD", HYBRID)):
                entries[f"{name}, {head}"] = (loaded, replace(pair, kind=kind))
        inputs = prompts(model, args.prompts, arguments)
        speed.measure(speed.contest(entries, 0.0), inputs[:1], 0.0, 16)
        for temperature in args.temperature:
            racing = speed.contest(entries, temperature)
            speed.report(temperature, racing, speed.measure(racing, inputs, temperature, args.new_tokens))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
