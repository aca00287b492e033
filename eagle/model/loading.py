"""Loading the pair that a program's arguments name."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from eagle import assets
from eagle.decoding.method import DEFAULT_SAMPLING, DRAFT_MODEL, GRAFTED, HEAD, LOOKUP, PICKING, SORTED, Method
from eagle.decoding.speculation import (
    SORTED_SHAPE,
    Offer,
    draft_model_shape,
    grafted_shape,
    lookup_shape,
    offer_of,
)
from eagle.decoding.stored_trees import DEFAULT_TREE, NO_TREES, StoredTrees, form_of
from eagle.devices import best_device, bfloat16_is_fast
from eagle.drafters.lookup.drafter import CONTEXT, DEFAULT_LOOKUP, FILES, LETTERS, LookupSettings
from eagle.drafters.sorted.exits import SortedDraft
from eagle.errors import InputError
from eagle.folders import local_folder
from eagle.model.ea_model import EaModel
from eagle.target.compiling import AUTO, COMPILE
from eagle.target.int8 import QUANTIZE
from eagle.target.processors import processors_of
from eagle.tree.shape import AUTO_TOTAL_TOKEN, CHAIN, DETERMINISTIC, HYBRID, PATHS, Sampling, TreeShape
from eagle.tuning import size as tune

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
SAMPLING = tuple(field.name for field in fields(Sampling))
MATCHES = tuple(field.name for field in fields(LookupSettings) if field.name != "keep")


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which pair to load, where, and with what tree.

    Attributes:
        base_model_path: path, hub id, alias or None (the embedded pair).
        ea_model_path: path, hub id or None.
        draft_model_path: of a separate draft model: path, hub id or None.
        sorted_draft: the target's first layers, trained to draft; None: there is none.
        dtype: one of ``DTYPES``.
        device: torch device name; None is the best of the machine.
        load_in_8bit: quantise the base model.
        gpus: GPUs of one model.
        max_gpu_memory: of each of them, None is all.
        total_token: of the tree; None takes the stored or the default value, as for the next three.
        depth: of the tree.
        top_k: of the tree.
        least: of the tree: the key of a node that is worth scoring.
        least_expanded: of the tree: the key of a node that is worth expanding.
        paths: of a tree of several chains.
        kind: of the tree, one of ``TREES``.
        drafter: of the tree, one of ``DRAFTERS``; None: the head, if there is one.
        temperature: of the text; the trees stored with a head depend on it.
        compile: one of ``COMPILE``.
        quantize: one of ``QUANTIZE``, or None.
        sampling: fields of ``Sampling`` that differ from the stored or the default values; for a hybrid tree.
        lookup: what the drafter ``lookup`` looks up.
    """

    base_model_path: str | None = None
    ea_model_path: str | None = None
    draft_model_path: str | None = None
    sorted_draft: SortedDraft | None = None
    dtype: str = "auto"
    device: str | None = None
    load_in_8bit: bool = False
    gpus: int = 1
    max_gpu_memory: str | None = None
    total_token: int | None = None
    depth: int | None = None
    top_k: int | None = None
    least: float | None = None
    least_expanded: float | None = None
    paths: int | None = None
    kind: str = DETERMINISTIC
    drafter: str | None = None
    temperature: float = 1.0
    compile: str = AUTO
    quantize: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lookup: LookupSettings = DEFAULT_LOOKUP

    def shape(self, form: str) -> TreeShape:
        """The bounds of its trees: given, else stored with the head for the form of the target (``form_of``), else the
        default; where the size is to be measured, the largest that is tried.

        Raises:
            InputError: a number out of its range, or sampled children of a tree that has none.
        """
        if self.sampling and self.kind != HYBRID:
            raise InputError(f"--{next(iter(self.sampling)).replace('_', '-')} is for hybrid trees (--hsd)")
        if self.drafted_by in (*PICKING, *GRAFTED) and self.total_token == AUTO_TOTAL_TOKEN:
            raise InputError(
                f"--total-token -1 cannot be measured for {self.drafted_by}: what it finds depends on the text"
            )
        if self.kind in (CHAIN, PATHS) and not (self.least is None and self.least_expanded is None):
            raise InputError("--least and --least-expanded are for trees of the likeliest nodes, not for chains")
        if self.drafted_by in PICKING:
            if self.least_expanded is not None:
                raise InputError(f"--least-expanded is for what a model drafts; {self.drafted_by} runs none")
            rows = self.lookup.rows if self.drafted_by == LOOKUP else 0
            return lookup_shape(self.drafted_by, self.total_token, self.depth, self.top_k, self.least, rows)
        if self.drafted_by in GRAFTED and self.lookup.window:
            raise InputError(f"--window is for --drafter {LOOKUP}; {self.drafted_by} has no lookahead rows")
        total_token = tune.LARGEST if self.total_token == AUTO_TOTAL_TOKEN else self.total_token
        if self.drafted_by == DRAFT_MODEL:
            sampling = replace(DEFAULT_SAMPLING, **self.sampling) if self.kind == HYBRID else None
            shape = draft_model_shape(total_token, self.depth, self.top_k, sampling, self.paths)
            return replace(shape, least=self.least, least_expanded=self.least_expanded)
        default = SORTED_SHAPE if self.drafted_by == SORTED else DEFAULT_TREE
        stored = self.stored_trees(form).at(self.temperature, self.kind, default)
        bounds = {"total_token": total_token, "paths": self.paths}
        bounds |= {name: getattr(self, name) for name in ("depth", "top_k", "least", "least_expanded")}
        given = {name: value for name, value in bounds.items() if value is not None}
        if given.keys() & {"total_token", "depth", "top_k"}:
            # Who says how large a tree is wants it as large, whatever was worth it in the stored one.
            stored = replace(stored, least=None, least_expanded=None)
        if self.drafted_by in GRAFTED:
            stored = grafted_shape(stored)
        sampling = replace(stored.sampling or DEFAULT_SAMPLING, **self.sampling) if self.kind == HYBRID else None
        return replace(stored, **given, sampling=sampling)

    @property
    def drafted_by(self) -> str:
        """Name of the drafter."""
        if self.drafter is not None:
            return self.drafter
        if self.paths_of_models()[1] is not None or (self.draft_model_path is None and self.sorted_draft is None):
            return HEAD
        return SORTED if self.draft_model_path is None else DRAFT_MODEL

    def paths_of_models(self) -> tuple[str, str | None]:
        """Where base model and head are, fetched if they are the embedded ones; a head may be missing beside a draft
        model, and where what drafts is looked up.

        Raises:
            InputError: see ``assets.resolve_pair``.
        """
        others = self.draft_model_path is not None or self.sorted_draft is not None
        headless = others or self.drafter in PICKING
        resolve = assets.resolve_base_and_head if headless else assets.resolve_pair
        return resolve(self.base_model_path, self.ea_model_path)

    def stored_trees(self, form: str) -> StoredTrees:
        """The trees stored with the head, or with the sorted draft where that drafts, for a form of the target, see
        ``form_of``."""
        if self.drafted_by == SORTED and self.sorted_draft is not None:
            return StoredTrees.read(local_folder(self.sorted_draft.folder, "the sorted draft"), form)
        _, head = self.paths_of_models()
        if head is None:
            return NO_TREES
        return StoredTrees.read(local_folder(head, "the draft head"), form)


def add_pair_arguments(parse: argparse._ActionsContainer) -> None:
    """The arguments that name a pair, for a parser or a group of one."""
    parse.add_argument("--base-model-path", help="directory, hub id or embedded alias; neither path: the embedded pair")
    parse.add_argument("--ea-model-path", help="directory or hub id of the draft head")
    parse.add_argument(
        "--draft-model-path",
        help="directory or hub id of a smaller model with the same tokenizer, for the methods draft/TREE:RULE; with it "
        "no head is needed",
    )
    parse.add_argument(
        "--sorted-model-path",
        help="directory, hub id or embedded alias of a sorted draft for this model, for the methods "
        "sorted/TREE:RULE; with it no head is needed",
    )
    parse.add_argument("--exit", type=int, help="of a sorted draft: the only exit to use, counted from 1")
    parse.add_argument(
        "--exit-thresholds",
        type=float,
        nargs="+",
        help="of a sorted draft: a node leaves where its largest probability is above that of the exit; without them "
        "as tune_tree found it to be the fastest, else all go to the last",
    )
    parse.add_argument("--dtype", default="auto", choices=DTYPES, help="of the weights; auto is the checkpoint's own")
    parse.add_argument(
        "--compile",
        default=AUTO,
        choices=COMPILE,
        help="the models' layers; auto: on a GPU, and on a CPU where there is enough to do",
    )
    parse.add_argument(
        "--quantize",
        choices=QUANTIZE,
        help="8-bit weights and activations, on a CPU; the texts are then those of the quantised model",
    )
    parse.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")


def add_lookup_arguments(group: argparse._ArgumentGroup) -> None:
    """The arguments that say what the drafter ``lookup`` looks up."""
    group.add_argument("--shortest", type=int, help="tokens of a match, at least; default 1")
    group.add_argument("--longest", type=int, help="tokens of a match, at most; default 8")
    group.add_argument(
        "--order",
        help=f"databases, of {', '.join(LETTERS)}: the text itself, --model-db, --corpus-db; default: all there are",
    )
    group.add_argument("--model-db", type=Path, help="S: answers of the model, of python -m eagle.lookup build")
    group.add_argument("--corpus-db", type=Path, help="L: any text, of the same")
    group.add_argument(
        "--window",
        type=int,
        help="lookahead rows: guesses in each, whose n-grams are looked up behind the text itself; each is a node that "
        "the model has to score. Default 0, without them",
    )
    group.add_argument(
        "--lookahead-level", type=int, help="n of these n-grams, of which there are n - 1 rows; default 5"
    )
    group.add_argument(
        "--keep-context",
        action="store_true",
        help="what was looked up in (by lookup, suffix, recycling) stays from question to question; then what is "
        "drafted, and so the text of a seed, depends on the questions before it",
    )


def lookup_settings(args: argparse.Namespace) -> LookupSettings:
    """What is looked up, as far as the arguments say.

    Raises:
        InputError: a number out of its range.
    """
    given = {name: getattr(args, name) for name in MATCHES if getattr(args, name) is not None}
    order = CONTEXT + "".join(letter for letter, name in FILES.items() if name in given)
    return LookupSettings(**{"order": order, **given}, keep=args.keep_context)


def sorted_draft(args: argparse.Namespace) -> SortedDraft | None:
    """The sorted draft that those arguments name.

    Raises:
        InputError: an exit without a draft, or both an exit and thresholds.
    """
    if args.sorted_model_path is None:
        if args.exit is not None or args.exit_thresholds is not None:
            raise InputError("--exit and --exit-thresholds are of a sorted draft (--sorted-model-path)")
        return None
    thresholds = None if args.exit_thresholds is None else tuple(args.exit_thresholds)
    return SortedDraft(args.sorted_model_path, args.exit, thresholds)


def pair_of(args: argparse.Namespace) -> ModelChoice:
    """The pair that those arguments name."""
    return ModelChoice(
        base_model_path=args.base_model_path,
        ea_model_path=args.ea_model_path,
        draft_model_path=args.draft_model_path,
        sorted_draft=sorted_draft(args),
        dtype=args.dtype,
        device=args.device,
        compile=args.compile,
        quantize=args.quantize,
    )


def existing_device(device: str | None) -> str:
    """The name of a device, None being the best there is.

    Raises:
        InputError: this machine has no such device.
    """
    device = device or best_device()
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: this machine (or this build of torch) has no CUDA")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {device}: this machine has no MPS")
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device must be cpu, cuda, cuda:N or mps, not {device}")
    return device


def load(choice: ModelChoice) -> EaModel:
    """Load the pair, with the tree of the choice.

    Raises:
        InputError: see ``EaModel.from_pretrained``; also a device or a package that is not there.
    """
    return load_with_trees([choice])[0]


def load_with_trees(choices: Sequence[ModelChoice]) -> tuple[EaModel, list[TreeShape]]:
    """Load a pair once, for several trees.

    Args:
        choices: of one pair; they differ in the tree only.

    Returns:
        The model, whose own tree is that of the first choice, and the tree of each choice. A ``total_token`` of -1 is
        measured on this machine, once for each kind of tree.

    Raises:
        InputError: as ``load``, or the model's ``generation_config`` cannot be honoured.
    """
    pair = choices[0]
    device = existing_device(pair.device)
    kind = device.partition(":")[0]
    # A number out of its range is said before anything is loaded.
    for choice in choices:
        choice.shape(kind)
    kwargs: dict[str, Any] = {"dtype": pair.dtype if pair.dtype == "auto" else getattr(torch, pair.dtype)}
    kwargs["device_map"] = {"": device}
    if kind == "cuda" and (pair.gpus > 1 or pair.max_gpu_memory):
        kwargs["device_map"] = "auto"
        if pair.max_gpu_memory:
            kwargs["max_memory"] = dict.fromkeys(range(pair.gpus), pair.max_gpu_memory)
    if pair.load_in_8bit:
        kwargs["quantization_config"] = _eight_bit(kind)
    model = EaModel.from_pretrained(
        base_model_path=pair.base_model_path,
        ea_model_path=pair.ea_model_path,
        draft_model_path=pair.draft_model_path,
        sorted_draft=pair.sorted_draft,
        compile=pair.compile,
        quantize=pair.quantize,
        lookup=pair.lookup,
        drafter=LOOKUP if all(choice.drafter in PICKING for choice in choices) else None,
        **kwargs,
    )
    if pair.dtype == "auto" and kind == "cpu" and model.target.dtype == torch.bfloat16 and not bfloat16_is_fast():
        assets.say("this CPU is slow in bfloat16, as the checkpoint is; --dtype float32 is faster, in twice the memory")
    # Before anything is answered, not with the first prompt.
    processors_of(model.base_model, torch.zeros(1, 1, dtype=torch.int64, device=model.device), 2, model.stop_ids())
    shapes = [choice.shape(form_of(model.target)) for choice in choices]
    drafters = [choice.drafted_by for choice in choices]
    for drafter in drafters:
        offer_of(model.offers, Method.named(hsd=False, drafter=drafter))
    to_measure = {
        (drafter, shape)
        for choice, drafter, shape in zip(choices, drafters, shapes, strict=True)
        if choice.total_token == AUTO_TOTAL_TOKEN
    }
    measured = {
        (drafter, shape): tune.tuned_shape(model.target, model.offers[drafter].drafter, shape)
        for drafter, shape in to_measure
    }
    trees = [
        measured[drafter, shape] if choice.total_token == AUTO_TOTAL_TOKEN else shape
        for choice, drafter, shape in zip(choices, drafters, shapes, strict=True)
    ]
    model.offers[drafters[0]] = Offer(model.offers[drafters[0]].drafter, trees[0])
    return model, trees


def _eight_bit(kind: str) -> object:
    if kind != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("--load-in-8bit needs a CUDA GPU and bitsandbytes (pip install bitsandbytes)")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)
