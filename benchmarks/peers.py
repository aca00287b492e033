"""transformers' own drafting and plain decoding on the same questions: ``python -m benchmarks.peers FOLDER``.

Writes ``plain.jsonl``, ``prompt_lookup.jsonl`` and, with a draft model (``--draft-model-path``), ``assisted.jsonl`` in
Spec-Bench's layout, each question answered by all of them before the next, for ``python -m eagle.evaluation.speed
FOLDER/prompt_lookup.jsonl FOLDER/plain.jsonl``. The model is the one that ``--base-model-path`` names, as transformers
runs it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from eagle import assets
from eagle.chat_template import chat_ids
from eagle.data.questions import Question, load_questions
from eagle.errors import InputError
from eagle.evaluation.answering.answer import turn_seed
from eagle.evaluation.answering.bench import add_bench_arguments, question_file
from eagle.model.loading import DTYPES, existing_device
from eagle.program import run_program
from eagle.target.base import load_base, load_tokenizer

PLAIN, PROMPT_LOOKUP, ASSISTED = "plain", "prompt_lookup", "assisted"


class Forwards:
    """Counts the forwards of a model.

    Args:
        model: of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.count = 0
        model.register_forward_hook(self._seen)

    def _seen(self, *_: object) -> None:
        self.count += 1


def methods(args: argparse.Namespace, device: torch.device) -> dict[str, dict[str, Any]]:
    """What ``generate`` is given beside the prompt, by method."""
    found: dict[str, dict[str, Any]] = {
        PLAIN: {},
        PROMPT_LOOKUP: {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3},
    }
    if args.draft_model_path is not None:
        folder = assets.resolve_base(args.draft_model_path)
        # With transformers' own schedule of how many tokens are drafted, as its users have it.
        assistant = load_base(folder, "the draft model", dtype=_dtype(args), device_map={"": device})
        found[ASSISTED] = {"assistant_model": assistant}
    return found


def _dtype(args: argparse.Namespace) -> Any:
    return args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)


def answer(
    model: PreTrainedModel,
    tokenizer: Any,
    forwards: Forwards,
    question: Question,
    args: argparse.Namespace,
    how: dict[str, Any],
) -> dict[str, Any]:
    """A choice of a line of answers."""
    messages: list[dict[str, str]] = []
    turns: list[dict[str, Any]] = []
    sampling = {"do_sample": args.temperature > 0, "top_k": 0, "top_p": 1.0}
    if args.temperature > 0:
        sampling["temperature"] = args.temperature
    for place, text in enumerate(question.turns):
        messages.append({"role": "user", "content": text})
        prompt = chat_ids(tokenizer, messages, None).to(model.device)
        torch.manual_seed(turn_seed(0, question.question_id, 0, place))
        before, start = forwards.count, time.perf_counter()
        ids = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=args.max_new_token, **sampling, **how
        )
        seconds = time.perf_counter() - start
        new = ids[0, prompt.shape[1] :]
        reply = tokenizer.decode(new, skip_special_tokens=True).strip()
        messages.append({"role": "assistant", "content": reply})
        turns.append(
            {
                **{"turns": reply, "decoding_steps": forwards.count - before - 1},
                **{"new_tokens": len(new), "wall_time": seconds},
            }
        )
    return {"index": 0, **{name: [turn[name] for turn in turns] for name in turns[0]}}


def peers(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    parse = argparse.ArgumentParser(description="Answer questions with transformers' own drafting and without drafts.")
    parse.add_argument("folder", type=Path)
    parse.add_argument("--base-model-path")
    parse.add_argument("--draft-model-path", help="of assisted generation; left out without one")
    parse.add_argument("--dtype", default="float32", choices=DTYPES)
    parse.add_argument("--device")
    parse.add_argument("--max-new-token", type=int, default=128)
    parse.add_argument("--temperature", type=float, default=0.0)
    add_bench_arguments(parse, "spec_bench")
    args = parse.parse_args(argv)
    questions = load_questions(question_file(args))
    base = assets.resolve_base(args.base_model_path)
    model = load_base(base, dtype=_dtype(args), device_map={"": existing_device(args.device)})
    tokenizer, forwards = load_tokenizer(base), Forwards(model)
    args.folder.mkdir(parents=True, exist_ok=True)
    ways = methods(args, model.device)
    files = {name: args.folder / f"{name}.jsonl" for name in ways}
    with torch.inference_mode():
        for how in ways.values():
            answer(model, tokenizer, forwards, Question(0, ("Hello.",)), args, how)
        lines: dict[str, list[str]] = {name: [] for name in ways}
        for question in tqdm(questions, dynamic_ncols=True):
            for name, how in ways.items():
                about = {"question_id": question.question_id, "category": question.category, "model_id": name}
                choice = answer(model, tokenizer, forwards, question, args, how)
                lines[name].append(json.dumps(about | {"choices": [choice], "tstamp": time.time()}))
                try:
                    files[name].write_text("\n".join(lines[name]) + "\n", encoding="utf-8")
                except OSError as error:
                    raise InputError(f"cannot write {files[name]}: {error}") from error


if __name__ == "__main__":
    sys.exit(run_program(peers))
