"""Where a benchmark's questions are."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import urllib.request
from pathlib import Path

from eagle import assets
from eagle.data.questions import GSM8K_CATEGORY
from eagle.errors import InputError

MT_BENCH = "mt_bench"
GSM8K = "gsm8k"
EAGLE_BENCHES = (GSM8K, "humaneval", "alpaca", "qa", "sum")
EAGLE_REPOSITORY = "https://github.com/SafeAILab/EAGLE"
HUB_GSM8K = "openai/gsm8k"
SPEC_BENCH = "spec_bench"
# Spec-Bench's questions (Xia et al. 2024; Apache-2.0), 480 in six tasks.
SPEC_BENCH_URL = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
SPEC_BENCH_SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"


def add_bench_arguments(parse: argparse.ArgumentParser | argparse._ArgumentGroup, default: str = MT_BENCH) -> None:
    """Add the arguments that name the questions."""
    parse.add_argument(
        "--bench-name",
        default=default,
        help=f"folder of the answers, and of the questions: {MT_BENCH}, {GSM8K} and {SPEC_BENCH} are fetched, of others"
        f" (in EAGLE {', '.join(EAGLE_BENCHES[1:])}) the file <bench-name>/question.jsonl is read",
    )
    parse.add_argument(
        "--question-file", type=Path, help="questions in FastChat's and EAGLE's JSON lines, or in GSM8K's own"
    )


def question_file(args: argparse.Namespace) -> Path:
    """The file with the questions that those arguments name.

    Raises:
        InputError: there is none, and it cannot be had.
    """
    if args.question_file is not None:
        return Path(args.question_file)
    file = Path(args.bench_name) / "question.jsonl"
    if args.bench_name == MT_BENCH:
        return assets.mt_bench_questions()
    if file.is_file():
        return file
    if args.bench_name == GSM8K:
        return _gsm8k_of_the_hub(file)
    if args.bench_name == SPEC_BENCH:
        return _spec_bench(file)
    known = f" from {_in_eagle(args.bench_name)}" if args.bench_name in EAGLE_BENCHES else ""
    raise InputError(
        f"no questions for --bench-name {args.bench_name}: put them{known} at {file}, or name a --question-file"
    )


def _spec_bench(file: Path) -> Path:
    """Spec-Bench's questions, fetched once and then kept in the cache."""
    cached = assets.cache_dir() / "data" / "spec-bench-question.jsonl"
    if cached.is_file():
        return cached
    instead = f"put {SPEC_BENCH_URL} at {file}, or name it with --question-file"
    try:
        with urllib.request.urlopen(SPEC_BENCH_URL, timeout=30) as answer:  # a constant, https
            content: bytes = answer.read()
    except (OSError, ValueError) as error:
        raise InputError(f"Spec-Bench's questions could not be fetched ({error}); {instead}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SPEC_BENCH_SHA256:
        raise InputError(
            f"what {SPEC_BENCH_URL} holds has sha256 {found}, not the pinned {SPEC_BENCH_SHA256}; the file is not used"
        )
    _put(cached, content)
    return cached


def _put(cached: Path, content: bytes) -> None:
    temporary = cached.with_name(f".{cached.name}-{os.getpid()}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(cached)
    except OSError as error:
        raise InputError(f"cannot write {cached}: {error} (EAGLE_CACHE chooses another place)") from error


def _in_eagle(bench: str) -> str:
    return f"eagle/data/{bench}/question.jsonl of {EAGLE_REPOSITORY}"


def _gsm8k_of_the_hub(file: Path) -> Path:
    """GSM8K's test questions in EAGLE's format, fetched from the hub once and then kept in the cache."""
    cached = assets.cache_dir() / "data" / "gsm8k-test.jsonl"
    if cached.is_file():
        return cached
    instead = f"or put EAGLE's 80 of them, {_in_eagle(GSM8K)}, at {file}, or name a --question-file"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            f"fetching GSM8K's questions needs the package datasets: pip install datasets, {instead}"
        ) from None
    try:
        rows = datasets.load_dataset(HUB_GSM8K, "main", split="test")
        lines = [
            {"question_id": place, "category": GSM8K_CATEGORY, "turns": [row["question"]], "reference": [row["answer"]]}
            for place, row in enumerate(rows)
        ]
    except Exception as error:  # of many types, all of them about the network or what is there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"GSM8K's questions ({HUB_GSM8K} on the hub) could not be read: {reason}; try again, {instead}"
        ) from error
    _put(cached, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return cached
