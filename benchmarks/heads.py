"""Draft heads of one target side by side: ``python -m benchmarks.heads HEAD [HEAD ...]``, the others over the first.

On MT-Bench's first turns: the overlap sum min(p, q) with the target by drafting step, along answers that the target
samples itself at temperature 1, and the exact expected accepted length of trees of both methods. The 95 % intervals
resample questions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.decode import prompts
from eagle import assets
from eagle.errors import InputError
from eagle.evaluation.loading import DTYPES, ModelChoice, load
from eagle.model.acceptance import Candidate, expected_lengths
from eagle.model.checkpoint import load_head
from eagle.model.drafter import Drafter
from eagle.model.head import Eagle3Head
from eagle.model.method import DEFAULT_SAMPLING, Method
from eagle.model.sampling import Warper
from eagle.model.target import Target
from eagle.model.tree import TreeShape
from eagle.program import run_program
from eagle.train.batches import Document, batch_of
from eagle.train.decode import Batch, Request, decode
from eagle.train.features import Reader
from eagle.train.fit import FitSettings, Trainee

QUESTIONS = 80
RESAMPLES = 2000
EVERY = 8


@dataclass
class Mean:
    """A mean over everything that was seen in some questions: a sum and a count for each question."""

    sums: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)

    def add(self, values: Sequence[float]) -> None:
        """What was seen in one more question."""
        self.sums.append(sum(values))
        self.counts.append(len(values))

    def resampled(self) -> np.ndarray:
        """The mean, and those of resampled questions, (1 + RESAMPLES,); the same questions for every mean."""
        picked = np.random.default_rng(0).integers(len(self.sums), size=(RESAMPLES, len(self.sums)))
        picked = np.vstack([np.arange(len(self.sums)), picked])
        return np.asarray(self.sums)[picked].sum(1) / np.asarray(self.counts)[picked].sum(1)


def answers(target: Target, questions: Sequence[list[int]], new_tokens: int) -> list[Document]:
    """What the target answers at temperature 1."""
    batch = Batch(target, len(questions), Warper(1.0), target.stop_ids, new_tokens)
    requests = [Request(str(number), ids, 1.0, new_tokens, number) for number, ids in enumerate(questions)]
    texts = sorted(decode(batch, requests), key=lambda text: int(text.request.key))
    return [Document(text.request.prompt + text.tokens, len(text.request.prompt)) for text in texts]


@torch.no_grad()
def overlaps(target: Target, head: Eagle3Head, documents: Sequence[Document], steps: int) -> list[Mean]:
    """Overlaps of a head, for each drafting step."""
    target.feature_layers = head.config.feature_layers
    kernel = target.config._attn_implementation
    reader = Reader(target, (torch.arange(len(head.d2t), device=head.d2t.device) + head.d2t))
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


def accepted(
    target: Target,
    head: Eagle3Head,
    questions: Sequence[list[int]],
    trees: dict[str, TreeShape],
    temperature: float,
    contexts: int,
    draws: int,
) -> dict[str, Mean]:
    """Expected accepted lengths of a head's trees."""
    candidates = [
        Candidate(shape, (Method.named(hsd=name == "HSD").rule,), (shape.total_token,), draws)
        for name, shape in trees.items()
    ]
    means = {name: Mean() for name in trees}
    drafter = Drafter(head)
    for number, question in enumerate(tqdm(questions, unit="question", dynamic_ncols=True)):
        seen = list(
            expected_lengths(
                target,
                drafter,
                torch.tensor([question], device=target.device),
                candidates,
                Warper(temperature),
                contexts,
                EVERY,
                target.stop_ids,
                torch.Generator().manual_seed(number),
            )
        )
        for place, mean in enumerate(means.values()):
            mean.add([measured[place].lengths[0][0] for measured in seen])
    return means


def report(title: str, names: Sequence[str], rows: dict[str, list[Mean]]) -> None:
    """Print a table: of each head the mean with its interval, and what it is over the first's."""
    print(f"\n{title}")
    for what, means in rows.items():
        first = means[0].resampled()
        for name, mean in zip(names, means, strict=True):
            values = mean.resampled()
            low, high = np.quantile(values[1:], (0.025, 0.975))
            line = f"{what:<20}{name:<28}{values[0]:>7.3f} ({low:.3f} to {high:.3f})"
            if mean is not means[0]:
                gains = 100 * (values / first - 1)
                low, high = np.quantile(gains[1:], (0.025, 0.975))
                line += f"   {gains[0]:+.1f} % ({low:+.1f} to {high:+.1f})"
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
    parse.add_argument("--new-tokens", type=int, default=128, help="of an answer that overlaps are measured along")
    parse.add_argument("--steps", type=int, default=5, help="drafting steps to measure overlaps of")
    args = parse.parse_args(argv)
    if min(args.nodes, args.levels, args.contexts, args.draws, args.new_tokens, args.steps) < 1:
        raise InputError("--nodes, --levels, --contexts, --draws, --new-tokens and --steps must be 1 or more")
    model = load(ModelChoice(args.base_model_path or assets.DEFAULT_PAIR, args.heads[0], args.dtype, args.device))
    target, questions = model.target, [prompt[0].tolist() for prompt in prompts(model, QUESTIONS)]
    plain = TreeShape(args.nodes + 1, args.levels - 1, 10)
    trees = {"EAGLE-3": plain, "HSD": TreeShape(plain.total_token, plain.depth, plain.top_k, DEFAULT_SAMPLING)}
    for temperature in args.temperature:
        found = []
        for head in args.heads:
            found.append(
                accepted(target, load_head(head, target), questions, trees, temperature, args.contexts, args.draws)
            )
        rows = {name: [means[name] for means in found] for name in trees}
        report(f"accepted of trees of {args.nodes} nodes, T={temperature}", args.heads, rows)
    documents = answers(target, questions, args.new_tokens)
    by_head = [overlaps(target, load_head(head, target), documents, args.steps) for head in args.heads]
    rows = {f"step {step + 1}": [means[step] for means in by_head] for step in range(args.steps)}
    report("overlap with the target, T=1", args.heads, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
