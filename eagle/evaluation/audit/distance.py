"""How far a quantised model is from the one it was made of: ``python -m eagle.evaluation.audit.distance``.

On texts that the model itself writes, at every token the law of what follows is compared: the total variation between
the two (the share of the tokens drawn that a best coupling would have to draw otherwise), the Kullback-Leibler
divergence, and whether both find the same token most likely.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eagle.chat_template import add_template_argument, chat_ids, require_chat_template, template_arguments
from eagle.data.questions import load_questions, spread
from eagle.errors import InputError
from eagle.evaluation.answering.bench import add_bench_arguments, question_file
from eagle.evaluation.reading.summary import INTERVAL, resampled
from eagle.evaluation.reading.tables import Table
from eagle.model.loading import add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.target.int8 import INT8
from eagle.target.loading import load_target
from eagle.target.target import Target
from eagle.tree.warping import Warper


@dataclass(frozen=True)
class Distance:
    """Between two laws of a token, over the n places of a text.

    Attributes:
        variation: (n,) total variation, 0 to 1.
        divergence: (n,) Kullback-Leibler divergence of the second from the first, in nats.
        agree: (n,) 1 where both have the same most likely token, else 0.
    """

    variation: Tensor
    divergence: Tensor
    agree: Tensor


@torch.inference_mode()
def laws(target: Target, text: Tensor, first: int, warper: Warper) -> Tensor:
    """(n, V) laws of the tokens of a (1, length) text from the place ``first`` on."""
    return warper(target.model(input_ids=text).logits[0, first - 1 : -1])


def distance(law: Tensor, other: Tensor) -> Distance:
    """Compare (n, V) laws row by row."""
    # Where the first law has nothing, neither has the divergence.
    terms = torch.where(law > 0, law * (law.log() - other.clamp(min=torch.finfo(other.dtype).tiny).log()), 0.0)
    agree = law.argmax(-1) == other.argmax(-1)
    return Distance(0.5 * (law - other).abs().sum(-1), terms.sum(-1), agree.to(law.dtype))


def mean(values: Sequence[Tensor]) -> str:
    """Of all places, with a 95 % interval from resampling texts."""
    sums = np.array([[float(value.sum()), len(value)] for value in values])
    drawn = resampled(sums)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], INTERVAL)
    return f"{sums[:, 0].sum() / sums[:, 1].sum():.4f} ({low:.4f} to {high:.4f})"


def parser() -> argparse.ArgumentParser:
    """The arguments of the program."""
    parse = argparse.ArgumentParser(
        description="Compare the laws of a quantised model with those of the one it was made of.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_pair_arguments(parse)
    parse.set_defaults(dtype="float32", device="cpu", quantize=INT8, compile="off")
    add_bench_arguments(parse)
    parse.add_argument("--prompts", type=int, default=20, help="first turns, evenly spread over the questions")
    parse.add_argument("--tokens", type=int, default=64, help="new tokens of each text at most")
    parse.add_argument("--temperature", type=float, default=1.0, help="of texts and laws, above 0")
    parse.add_argument("--seed", type=int, default=0)
    add_template_argument(parse)
    return parse


def compare(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser().parse_args(argv)
    warper = Warper(args.temperature)
    if args.temperature == 0:
        raise InputError("--temperature must be above 0: at 0 there are no laws to compare")
    for name in ("prompts", "tokens"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be 1 or more, not {getattr(args, name)}")
    arguments = template_arguments(args.chat_template_kwargs)
    questions = spread(load_questions(question_file(args)), args.prompts)
    choice = pair_of(args)
    model = load(replace(choice, quantize=None))
    dtype, device = model.target.dtype, model.device
    quantized = load_target(model.base_model_path, choice.quantize, dtype=dtype, device_map={"": device})
    tokenizer = model.get_tokenizer()
    require_chat_template(tokenizer, model.base_model_path, arguments)
    found: list[Distance] = []
    for question in tqdm(questions, unit="text", dynamic_ncols=True):
        prompt = chat_ids(tokenizer, [{"role": "user", "content": question.turns[0]}], arguments)
        generator = torch.Generator().manual_seed(args.seed)
        text = model.naivegenerate(prompt, args.temperature, max_new_tokens=args.tokens, generator=generator)
        if not isinstance(text, Tensor):
            raise TypeError("a text without a log is its tokens")
        found.append(distance(*(laws(each, text, prompt.shape[1], warper) for each in (model.target, quantized))))
    table = Table(
        f"{choice.quantize} beside {str(dtype).removeprefix('torch.')}, temperature {args.temperature:g}: "
        f"{sum(len(each.variation) for each in found)} places in {len(found)} texts",
        ("", "mean"),
        [
            ("total variation", mean([each.variation for each in found])),
            ("Kullback-Leibler divergence", mean([each.divergence for each in found])),
            ("same most likely token", mean([each.agree for each in found])),
        ],
    )
    print(f"{table.title}\n{table.text()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(compare, argv)


if __name__ == "__main__":
    sys.exit(main())
