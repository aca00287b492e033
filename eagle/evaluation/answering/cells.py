"""A cell: one method at one sampling, as it is answered, named and written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eagle import assets
from eagle.chat_template import template_arguments
from eagle.data.jsonl import is_text
from eagle.decoding.method import DRAFT_MODEL, HEAD, LOOKUP, PICKING, SORTED, Method
from eagle.decoding.sampling_params import SamplingParams
from eagle.errors import InputError
from eagle.evaluation.answering.answer import AnswerSettings
from eagle.evaluation.answering.few_shot import read_exemplars, recorded
from eagle.evaluation.answering.records import Record, RunFiles
from eagle.identity import readable_name
from eagle.model.loading import ModelChoice, lookup_settings, pair_of
from eagle.tree.shape import DETERMINISTIC


@dataclass(frozen=True)
class Cell:
    """One method at one sampling.

    Attributes:
        settings: how to answer.
        choice: the pair, and the method's tree.
        model_id: name of the model and the sampling in the answers.
        files: where the answers go.
    """

    settings: AnswerSettings
    choice: ModelChoice
    model_id: str
    files: RunFiles

    @property
    def label(self) -> str:
        """The method and the sampling, for people: ``ea_hsd, temperature 1.0``."""
        nucleus = f", top_p {self.settings.top_p}" if 0.0 < self.settings.top_p < 1.0 else ""
        return f"{_suffix(self.settings.drafting)}, temperature {self.settings.temperature}{nucleus}"


def cell_of(
    args: argparse.Namespace,
    drafting: Method | None,
    temperature: float,
    top_p: float,
    sampled: Mapping[str, Any],
    answer_file: Path | None = None,
) -> Cell:
    """The cell of a method at a sampling.

    Args:
        args: of ``arguments.answering_parser``.
        drafting: the method; None is the baseline.
        temperature: 0 is greedy.
        top_p: nucleus mass; 0 and 1 are off.
        sampled: fields of ``Sampling`` that were given, for a hybrid tree.
        answer_file: where the answers go, if not where EAGLE puts them.

    Raises:
        InputError: a number out of its range, exemplars that are none, or arguments that are not for the chat template.
    """
    SamplingParams(
        temperature,
        top_p,
        args.sample_top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=args.stop,
    )
    if drafting is not None and drafting.drafter == DRAFT_MODEL and args.draft_model_path is None:
        raise InputError(f"the method {drafting.name} needs a draft model; give --draft-model-path")
    if drafting is not None and drafting.drafter == SORTED and args.sorted_model_path is None:
        raise InputError(f"the method {drafting.name} needs a sorted draft; give --sorted-model-path")
    for name in ("max_new_token", "num_choices"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}")
    if args.system_prompt is not None and not is_text(args.system_prompt):
        raise InputError("--system-prompt is not valid text: the terminal's encoding does not fit what was typed")
    settings = AnswerSettings(
        drafting=drafting,
        temperature=temperature,
        top_p=top_p,
        top_k=args.sample_top_k,
        max_new_token=args.max_new_token,
        num_choices=args.num_choices,
        seed=args.seed,
        system_prompt=args.system_prompt,
        chat_template_kwargs=template_arguments(args.chat_template_kwargs),
        few_shot=read_exemplars(args.few_shot),
        keep_context=args.keep_context,
        layout=args.format,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop),
    )
    model_id = _model_id(args, settings)
    usual = Path(args.bench_name) / args.folder_id / f"{model_id}_{_suffix(drafting)}.jsonl"
    return Cell(settings, _choice(args, settings, sampled), model_id, RunFiles.to_write(answer_file or usual))


def _choice(args: argparse.Namespace, settings: AnswerSettings, sampled: Mapping[str, Any]) -> ModelChoice:
    drafting = settings.drafting
    kind = DETERMINISTIC if drafting is None else drafting.at(settings.temperature).tree
    if drafting is not None and kind != drafting.tree:
        sampled = {}
    # Without drafts there is no tree.
    names = ("total_token", "depth", "top_k", "least", "least_expanded", "paths")
    bounds: dict[str, Any] = {} if drafting is None else {name: getattr(args, name) for name in names}
    return replace(
        pair_of(args),
        load_in_8bit=args.load_in_8bit,
        gpus=args.num_gpus_per_model,
        max_gpu_memory=args.max_gpu_memory,
        **bounds,
        kind=kind,
        # What drafts nothing needs no head.
        drafter=LOOKUP if drafting is None else drafting.drafter,
        temperature=settings.temperature,
        sampling=sampled,
        lookup=lookup_settings(args),
    )


def described(cell: Cell, questions_sha256: str) -> Record:
    """What shapes the text and is known before loading; answers of other settings are never mixed with these.

    Which models they are is known only of what was loaded, see ``Answerer.facts``: a path is no model.
    """
    return {
        "load_in_8bit": cell.choice.load_in_8bit,
        "quantize": cell.choice.quantize,
        "questions_sha256": questions_sha256,
        **recorded(asdict(cell.settings)),
        "drafting": None if cell.settings.drafting is None else cell.settings.drafting.record(),
    }


def names(cell: Cell) -> Record:
    """What people call the models, for the record."""
    base, head = cell.choice.base_model_path, cell.choice.ea_model_path
    drafted = {}
    if cell.settings.drafting and cell.settings.drafting.drafter == DRAFT_MODEL:
        drafted = {"draft_model": cell.choice.draft_model_path}
    elif cell.choice.sorted_draft and cell.settings.drafting and cell.settings.drafting.drafter == SORTED:
        drafted = {"sorted_model": cell.choice.sorted_draft.path}
    elif cell.settings.drafting and cell.settings.drafting.drafter not in PICKING:
        drafted = {"ea_model": head or assets.DEFAULT_PAIR}
    return {"base_model": base or assets.DEFAULT_PAIR, **drafted}


def _model_id(args: argparse.Namespace, settings: AnswerSettings) -> str:
    """Name of the model and its sampling, as EAGLE's files have it: ``<model-id>-temperature-<t>[-top_p-<p>]``."""
    name = args.model_id or readable_name(args.base_model_path or assets.DEFAULT_PAIR)
    if not is_text(name):
        raise InputError(f"the name of the model, {name!a}, is not valid text; --model-id gives it another")
    top_p = f"-top_p-{settings.top_p}" if 0.0 < settings.top_p < 1.0 else ""
    return f"{name}-temperature-{settings.temperature}{top_p}"


def _suffix(drafting: Method | None) -> str:
    """EAGLE's file names, ``ea_hsd`` for HSD; an ablation has its tree and its rule in the name, and its drafter in
    front of them if it is not the head."""
    usual = {None: "baseline", Method.named(hsd=False): "ea", Method.named(hsd=True): "ea_hsd"}
    if drafting is None or drafting in usual:
        return usual[drafting]
    drafter = "" if drafting.drafter == HEAD else f"{drafting.drafter}_"
    return f"ea_{drafter}{drafting.tree}_{drafting.verifier}"
