"""The arguments of the programs that answer questions."""

from __future__ import annotations

import argparse
from typing import Any

from eagle.chat_template import add_template_argument
from eagle.decoding.method import DEFAULT_PATHS
from eagle.decoding.stored_trees import DEFAULT_TREE
from eagle.evaluation.answering.bench import add_bench_arguments
from eagle.evaluation.answering.few_shot import add_few_shot_argument
from eagle.evaluation.answering.layouts import FASTCHAT, LAYOUTS
from eagle.model.loading import SAMPLING, add_lookup_arguments, add_pair_arguments
from eagle.tree.shape import AUTO_TOTAL_TOKEN


def answering_parser(description: str) -> argparse.ArgumentParser:
    """A parser with what every answering program takes; sampling and methods are for the program to add."""
    parse = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    model = parse.add_argument_group("model")
    add_pair_arguments(model)
    model.add_argument("--load-in-8bit", action="store_true", help="quantise the base model (bitsandbytes, CUDA)")
    model.add_argument(
        "--use_eagle3", "--use-eagle3", action="store_true", default=True, help="accepted for EAGLE's sake; always on"
    )
    tree = parse.add_argument_group(
        "draft tree (defaults: those stored with the head for the device and the temperature, where it has some, "
        f"else {DEFAULT_TREE.total_token}, {DEFAULT_TREE.depth}, {DEFAULT_TREE.top_k})"
    )
    tree.add_argument(
        "--total-token", type=int, help=f"nodes, the root included; {AUTO_TOTAL_TOKEN} tunes to the machine"
    )
    tree.add_argument("--depth", type=int, help="expansions after the first level; of a draft model's trees the levels")
    tree.add_argument("--top-k", type=int, help="children of an expanded node")
    tree.add_argument(
        "--least",
        type=float,
        help="key of a node that is worth scoring (about its probability); default: all are, and "
        "of trees with look-up 0.1 (recycling 0.03; beside samples 0.15)",
    )
    tree.add_argument(
        "--least-expanded",
        type=float,
        help="key of a node that is worth expanding: drafting ends where no node of a level has one as large",
    )
    tree.add_argument("--paths", type=int, help=f"i.i.d. chains of the trees paths; default {DEFAULT_PATHS}")
    add_lookup_arguments(parse.add_argument_group("look-up, drafting without a model"))
    run = parse.add_argument_group("run")
    add_bench_arguments(run)
    run.add_argument("--folder_id", "--folder-id", default="default", help="sub-folder of the answers")
    run.add_argument(
        "--format",
        choices=LAYOUTS,
        default=FASTCHAT,
        help="layout of the answers: FastChat's and EAGLE's, or Spec-Bench's",
    )
    run.add_argument("--model-id", help="name in the answers; default: the base model's")
    run.add_argument("--question-begin", type=int, help="first question, counted from 0")
    run.add_argument("--question-end", type=int, help="question to stop before")
    run.add_argument("--max-new-token", type=int, default=1024, help="new tokens a turn")
    run.add_argument("--num-choices", type=int, default=1, help="answers to each question")
    run.add_argument("--system-prompt", help="system message of every conversation")
    add_few_shot_argument(run)
    add_template_argument(run)
    run.add_argument("--sample-top-k", type=int, default=0, help="most likely tokens kept; 0 is off")
    run.add_argument("--min-p", type=float, default=0.0, help="least share of the likeliest probability; 0 is off")
    run.add_argument("--repetition-penalty", type=float, help="default: what the model's generation_config says")
    run.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="an answer ends in front of such a text")
    run.add_argument("--seed", type=int, default=0, help="base of the seeds, which depend on question and turn only")
    gpus = parse.add_argument_group("GPUs")
    gpus.add_argument("--num-gpus-per-model", type=int, default=1)
    gpus.add_argument("--num-gpus-total", type=int, default=1, help="more than per model: questions are sharded by Ray")
    gpus.add_argument("--max-gpu-memory", help="of each GPU, for instance 40GiB")
    return parse


def add_hybrid_arguments(group: argparse._ArgumentGroup) -> None:
    """Add what shapes the sampled part of hybrid trees."""
    group.add_argument("--threshold", type=float, help="hybrid: deterministic children have a key of at least this")
    group.add_argument("--rho", type=float, help="hybrid: key of a sampled child, as a share of what it could have")
    group.add_argument("--samples", type=int, help="hybrid: sampled children of a node")
    group.add_argument("--draft-temperature", type=float, help="hybrid: of the samples, times the temperature")
    group.add_argument("--early", type=float, help="hybrid: nodes with a key of at least this are decided on first")
    group.add_argument("--early-nodes", type=int, help="hybrid: so many of them at most")


def hybrid_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Those of ``add_hybrid_arguments`` that were given, as fields of ``Sampling``."""
    return {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
