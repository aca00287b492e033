"""A small draft model made of the target's first layers: ``python -m benchmarks.first_layers --out FOLDER``.

Its embeddings, final norm and lm_head are the target's own. By themselves such layers say next to nothing of the next
token, so they are trained a little to give the target's laws on its own answers to ShareGPT's questions: enough for
drafts to be accepted now and then, which is what comparing verification rules takes. A draft model for use is trained
longer and elsewhere.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from eagle import assets
from eagle.chat_template import chat_ids
from eagle.data.conversations import read_conversations
from eagle.drafters.sorted.checkpoint import first_layers
from eagle.program import run_program
from eagle.target.base import load_base, load_tokenizer

LONGEST, ANSWER = 160, 96
BATCH = 8
CLIP = 1.0


@torch.no_grad()
def texts(target: PreTrainedModel, path: str, seed: int) -> Iterator[Tensor]:
    """(1, n) first questions of ShareGPT with the target's own sampled answers, each answer twice."""
    tokenizer = load_tokenizer(path)
    prompts = [conversation.turns[0] for conversation in read_conversations(None)]
    source = random.Random(seed)  # noqa: S311  # a reproducible order, not a secret
    while True:
        ids = [chat_ids(tokenizer, [{"role": "user", "content": text}])[0] for text in source.sample(prompts, BATCH)]
        ids = [prompt for prompt in ids if len(prompt) <= LONGEST]
        if not ids:
            continue
        width = max(map(len, ids))
        rows = torch.stack([functional.pad(prompt, (width - len(prompt), 0)) for prompt in ids])
        mask = torch.stack([functional.pad(torch.ones_like(prompt), (width - len(prompt), 0)) for prompt in ids])
        how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": ANSWER, "pad_token_id": 0}
        written = target.generate(rows, attention_mask=mask, **how)
        answers = [row[width - len(prompt) :][None] for row, prompt in zip(written, ids, strict=True)]
        for _ in range(2):
            yield from source.sample(answers, len(answers))


def train(
    model: PreTrainedModel, target: PreTrainedModel, source: Iterator[Tensor], minutes: float, rate: float
) -> None:
    """Bring the model's laws near the target's for some minutes, by the divergence from the target's law."""
    model.train()
    for parameter in (*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()):
        parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    began, step, shown = time.monotonic(), 0, 0.0
    while (spent := time.monotonic() - began) < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * max(0.05, 1.0 - spent / (60 * minutes))
        ids = next(source)
        with torch.no_grad():
            p = target(ids).logits[0].softmax(-1)
        log_q = model(ids).logits[0].log_softmax(-1)
        loss = functional.kl_div(log_q, p, reduction="batchmean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        overlap = float(torch.minimum(p, log_q.detach().exp()).sum(-1).mean())
        shown = overlap if step == 1 else 0.95 * shown + 0.05 * overlap
        if step % 20 == 0:
            assets.say(f"step {step}, {spent / 60:.1f} min: overlap of the laws {shown:.3f}")
    model.eval()


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole program."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--base-model-path", help="directory, hub id or embedded alias; default: the embedded pair's")
    parse.add_argument("--layers", type=int, default=8)
    parse.add_argument("--minutes", type=float, default=10.0, help="of training; 0 keeps the layers as they are")
    parse.add_argument("--lr", type=float, default=3e-4)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--out", type=Path, required=True, help="folder of the draft model")
    args = parse.parse_args(argv)
    path = assets.resolve_base(args.base_model_path)
    target = load_base(path, dtype=torch.float32, device_map={"": "cpu"})
    torch.manual_seed(args.seed)
    model = first_layers(target, args.layers)
    train(model, target, texts(target, path, args.seed), args.minutes, args.lr)
    model.to(torch.bfloat16).save_pretrained(args.out)
    load_tokenizer(path).save_pretrained(args.out)
    print(f"written: {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
