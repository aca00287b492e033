"""What the answering programs share: arguments, error handling, and the run itself."""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

import eagle
from eagle import assets
from eagle.errors import InputError
from eagle.evaluation import sharding
from eagle.evaluation.answer import Answered, AnswerSettings
from eagle.evaluation.loading import DEFAULT_TREE, SAMPLING, ModelChoice, add_pair_arguments
from eagle.evaluation.questions import load_questions
from eagle.evaluation.records import Record, RunFiles
from eagle.model.method import Method
from eagle.model.sampling import Warper
from eagle.model.tree import AUTO_TOTAL_TOKEN, DETERMINISTIC, HYBRID, TREES
from eagle.verification import RULES

DEFAULT_BENCH = "mt_bench"
INTERRUPTED = "interrupted; finished questions are saved, and the same command resumes"


def parser(baseline: bool) -> argparse.ArgumentParser:
    """The arguments of an answering program."""
    parse = argparse.ArgumentParser(
        description="Answer benchmark questions with "
        + ("autoregressive decoding (the baseline)." if baseline else "EAGLE-3 speculative decoding, or HSD."),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    model = parse.add_argument_group("model")
    add_pair_arguments(model)
    model.add_argument("--load-in-8bit", action="store_true", help="quantise the base model (bitsandbytes, CUDA)")
    model.add_argument("--use_eagle3", action="store_true", default=True, help="accepted for EAGLE's sake; always on")
    tree = parse.add_argument_group(
        "draft tree (defaults: those tuned for the head and the device, where it has some, "
        f"else {DEFAULT_TREE.total_token}, {DEFAULT_TREE.depth}, {DEFAULT_TREE.top_k})"
    )
    tree.add_argument(
        "--total-token", type=int, help=f"nodes, the root included; {AUTO_TOTAL_TOKEN} tunes to the machine"
    )
    tree.add_argument("--depth", type=int, help="expansions after the first level")
    tree.add_argument("--top-k", type=int, help="children of an expanded node")
    if not baseline:
        hsd = parse.add_argument_group("hierarchical verification")
        hsd.add_argument("--hsd", action="store_true", help="hybrid trees, joint verification (lossless)")
        hsd.add_argument("--verifier", help=f"ablation: another rule ({', '.join(RULES)})")
        hsd.add_argument("--tree", help=f"ablation: another kind of tree ({', '.join(TREES)})")
        hsd.add_argument("--threshold", type=float, help="hybrid: deterministic children have a key of at least this")
        hsd.add_argument("--rho", type=float, help="hybrid: key of a sampled child, as a share of what it could have")
        hsd.add_argument("--samples", type=int, help="hybrid: sampled children of a node")
        hsd.add_argument("--draft-temperature", type=float, help="hybrid: of the samples, times the temperature")
    sampling = parse.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    sampling.add_argument("--top_p", "--top-p", type=float, default=1.0, help="nucleus mass; 0 and 1 are off")
    sampling.add_argument("--sample-top-k", type=int, default=0, help="most likely tokens kept; 0 is off")
    sampling.add_argument(
        "--seed", type=int, default=0, help="base of the seeds, which depend on question and turn only"
    )
    run = parse.add_argument_group("run")
    run.add_argument("--bench-name", default=DEFAULT_BENCH, help="folder of the answers, and of the questions")
    run.add_argument("--folder_id", default="default", help="sub-folder of the answers")
    run.add_argument("--model-id", help="name in the answers; default: the base model's")
    run.add_argument("--answer-file", type=Path, help="exactly where the answers go")
    run.add_argument("--question-file", type=Path, help="FastChat JSONL; default: MT-Bench")
    run.add_argument("--question-begin", type=int, help="first question, counted from 0")
    run.add_argument("--question-end", type=int, help="question to stop before")
    run.add_argument("--max-new-token", type=int, default=1024, help="new tokens a turn")
    run.add_argument("--num-choices", type=int, default=1, help="answers to each question")
    run.add_argument("--system-prompt", help="system message of every conversation")
    gpus = parse.add_argument_group("GPUs")
    gpus.add_argument("--num-gpus-per-model", type=int, default=1)
    gpus.add_argument("--num-gpus-total", type=int, default=1, help="more than per model: questions are sharded by Ray")
    gpus.add_argument("--max-gpu-memory", help="of each GPU, for instance 40GiB")
    return parse


def answer_questions(baseline: bool, argv: Sequence[str] | None) -> None:
    """The whole program: read arguments, load, answer what is not answered yet.

    Raises:
        InputError: anything the user can put right.
    """
    args = parser(baseline).parse_args(argv)
    settings = _settings(baseline, args)
    question_file = _question_file(args)
    questions = load_questions(question_file, args.question_begin, args.question_end)
    kind = DETERMINISTIC if settings.drafting is None else settings.drafting.tree
    if kind == HYBRID and settings.temperature == 0:
        # Nothing is sampled at temperature 0, so HSD takes EAGLE-3's tree and writes EAGLE-3's text.
        kind = DETERMINISTIC
    choice = ModelChoice(
        base_model_path=args.base_model_path,
        ea_model_path=args.ea_model_path,
        dtype=args.dtype,
        device=args.device,
        load_in_8bit=args.load_in_8bit,
        gpus=args.num_gpus_per_model,
        max_gpu_memory=args.max_gpu_memory,
        total_token=args.total_token,
        depth=args.depth,
        top_k=args.top_k,
        kind=kind,
        sampling={name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
        if kind == HYBRID or (settings.drafting is not None and settings.temperature > 0)
        else {},
    )
    workers = sharding.worker_count(args.num_gpus_total, args.num_gpus_per_model)
    model_id = _model_id(args, settings)
    files = RunFiles.beside(args.answer_file or _answer_file(args, settings.drafting, model_id))
    described = _describe(choice, settings, question_file)
    with files.locked():
        recorded = files.recorded()
        if args.total_token == AUTO_TOTAL_TOKEN and recorded is not None and "tree" in recorded["settings"]:
            # A resumed run keeps the tree it began with: the text depends on it.
            choice = replace(choice, total_token=recorded["settings"]["tree"]["total_token"])
        if workers == 1:
            models: sharding.OneModel | sharding.ShardedModels = sharding.OneModel(choice, settings, model_id)
        else:
            models = sharding.ShardedModels(choice, settings, model_id, workers)
        finished = files.begin(described | models.facts, _environment(args), settings.num_choices)
        to_do = [question for question in questions if question.question_id not in finished]
        _collect(models.answer_all(to_do), files, len(questions), len(to_do))
        files.sort([question.question_id for question in questions])
    print(f"{files.answers}: {len(questions)} questions answered", file=sys.stderr)


def _collect(answered: Iterator[Answered], files: RunFiles, total: int, to_do: int) -> None:
    """Write answers as they come, with a progress bar of tokens/s and tau (accepted + 1 a round)."""
    tokens, seconds, rounds, accepted = 0, 0.0, 0, 0
    with tqdm(total=total, initial=total - to_do, unit="question", dynamic_ncols=True) as bar:
        for item in answered:
            files.append(item.answer, item.infos)
            tokens, seconds = tokens + item.new_tokens, seconds + item.seconds
            rounds, accepted = rounds + item.rounds, accepted + item.accepted
            bar.set_postfix({"tok/s": f"{tokens / seconds:.1f}", "tau": f"{1 + accepted / max(rounds, 1):.2f}"})
            bar.update()


def _settings(baseline: bool, args: argparse.Namespace) -> AnswerSettings:
    Warper(args.temperature, args.top_p, args.sample_top_k)
    for name in ("max_new_token", "num_choices"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}")
    return AnswerSettings(
        drafting=None if baseline else Method.named(args.hsd, args.verifier, args.tree),
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.sample_top_k,
        max_new_token=args.max_new_token,
        num_choices=args.num_choices,
        seed=args.seed,
        system_prompt=args.system_prompt,
    )


def _question_file(args: argparse.Namespace) -> Path:
    if args.question_file is not None:
        return args.question_file
    if args.bench_name == DEFAULT_BENCH:
        return assets.mt_bench_questions()
    file = Path(args.bench_name) / "question.jsonl"
    if not file.is_file():
        raise InputError(
            f"no questions for --bench-name {args.bench_name}: put them at {file}, or name a --question-file"
        )
    return file


def _model_id(args: argparse.Namespace, settings: AnswerSettings) -> str:
    """Name of the model and its sampling, as EAGLE's files have it: ``<model-id>-temperature-<t>[-top_p-<p>]``."""
    name = args.model_id or Path(args.base_model_path or assets.DEFAULT_PAIR).name
    top_p = f"-top_p-{settings.top_p}" if 0.0 < settings.top_p < 1.0 else ""
    return f"{name}-temperature-{settings.temperature}{top_p}"


def _answer_file(args: argparse.Namespace, drafting: Method | None, model_id: str) -> Path:
    """EAGLE's file names, ``_ea_hsd`` for HSD; an ablation has its tree and its rule in the name."""
    usual = {None: "baseline", Method.named(hsd=False): "ea", Method.named(hsd=True): "ea_hsd"}
    suffix = usual[drafting] if drafting is None or drafting in usual else f"ea_{drafting.tree}_{drafting.verifier}"
    return Path(args.bench_name) / args.folder_id / f"{model_id}_{suffix}.jsonl"


def _describe(choice: ModelChoice, settings: AnswerSettings, question_file: Path) -> Record:
    """What shapes the text and is known before loading; answers of other settings are never mixed with these."""
    drafted = {"ea_model": choice.ea_model_path or assets.DEFAULT_PAIR} if settings.drafting else {}
    return {
        "base_model": choice.base_model_path or assets.DEFAULT_PAIR,
        **drafted,
        "load_in_8bit": choice.load_in_8bit,
        "questions_sha256": hashlib.sha256(question_file.read_bytes()).hexdigest(),
        **asdict(settings),
    }


def _environment(args: argparse.Namespace) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "eagle": eagle.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
