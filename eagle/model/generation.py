"""Speculative decoding within ``generate`` of ``transformers``: ``model.generate(ids, custom_generate=
speculative_generate, ea_model_path=..., hsd=True)``.

``generate`` prepares what a text is written with, logits processors and stopping criteria, whatever its many settings
are, and so does nothing else here: processors are applied to every node of a tree, with the path to it as what was
written before, and criteria look at every new token as if it had come alone. So a text is the one that ``generate``
would have written, and a sampled one has its law.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    SynthIDTextWatermarkLogitsProcessor,
)
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from eagle import assets
from eagle.decoding.decoding import Decoding, rounds
from eagle.decoding.method import PICKING
from eagle.decoding.prompt import Prompt
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.model.offers import Bounds, Drafts, offers_of
from eagle.target.check import refuse_wrong_scores
from eagle.target.processors import PathProcessors
from eagle.target.target import Target
from eagle.target.text import Text
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper

# Processors that look at logits alone.
WARPERS = (
    *(TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TopHLogitsWarper, MinPLogitsWarper),
    *(TypicalLogitsWarper, EpsilonLogitsWarper, EtaLogitsWarper, LogitNormalization, InfNanRemoveLogitsProcessor),
)
# Under which name a model keeps what drafts for it, so that it is loaded once.
KEPT = "_eagle_pairs"
# Processors that remember what they were asked, or ask the model: not functions of a text and its logits.
STATEFUL = (SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)


@torch.no_grad()
def speculative_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    ea_model_path: str | None = None,
    draft_model_path: str | None = None,
    drafter: str | None = None,
    hsd: bool = False,
    verifier: str | None = None,
    tree: str | TreeShape | None = None,
    generator: torch.Generator | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decode speculatively; ``generate`` calls this, see there for what is not said here.

    Args:
        model: that ``generate`` was asked of.
        input_ids: (B, n) int64; each row is decoded by itself.
        logits_processor: as ``generate`` has prepared them, warpers included. Those of a user's own are asked about
            nodes of trees, many rows at a time and in any order, and must treat each row by itself.
        stopping_criteria: likewise.
        generation_config: likewise.
        ea_model_path: directory, hub id or alias of an EAGLE-3 head.
        draft_model_path: of a smaller model with the same tokenizer.
        drafter: what drafts, see ``EaModel.eagenerate``; ``lookup``, ``suffix`` and ``recycling`` need neither.
        hsd: see there.
        verifier: see there.
        tree: see there.
        generator: source of randomness; None is torch's global CPU generator.
        **model_kwargs: what ``generate`` has prepared for forwards of the model.

    Returns:
        What ``generate`` returns: (B, length) int64, or, with ``return_dict_in_generate``, an object with sequences and
        the scores and logits of the new tokens that were asked for.

    Raises:
        InputError: (a ``ValueError``) something that is not honoured (names it), or see ``EaModel``.
    """
    streamer, assistant = _given_to_generate("streamer", "assistant_model")
    _refuse_what_is_not_honoured(model, generation_config, logits_processor, model_kwargs, assistant)
    keeps = generation_config.return_dict_in_generate and (
        generation_config.output_scores or generation_config.output_logits
    )
    if keeps and len(input_ids) > 1:
        raise InputError(
            "scores and logits are of one text; ask for one sequence, or leave output_scores and output_logits out"
        )
    pair = _pair(model, ea_model_path, draft_model_path, drafter)
    temperature = float(generation_config.temperature or 1.0) if generation_config.do_sample else 0.0
    speculation = pair.speculation(hsd, verifier, tree, drafter, temperature)
    mask = model_kwargs.get("attention_mask")
    written: list[Written] = []
    with _attention_of(pair.target):
        for row in range(len(input_ids)):
            shown = torch.ones_like(input_ids[:1]) if mask is None else mask[row : row + 1]
            prompt = Prompt.read(input_ids[row : row + 1], shown, pair.target.vocab_size, None, frozenset())
            padding = prompt.padding.shape[1]
            if padding and not all(isinstance(each, WARPERS) for each in logits_processor):
                raise InputError(
                    "processors that read the text would read its padding; decode texts of different lengths one by one"
                )
            warper = Warper(float(generation_config.do_sample))
            processors = PathProcessors(logits_processor) if len(logits_processor) else None
            limit = _limit(generation_config, pair.target, padding)
            ids = prompt.input_ids.to(pair.device)
            text = Text(ids, warper, limit, _ends(stopping_criteria), generator, processors)
            said: list[Tensor] | None = [] if keeps else None
            watch = None if said is None else partial(_keep, said)
            decoding = Decoding(pair.target, speculation, text, watch=watch)
            written.append(
                _write(decoding, input_ids[row].tolist(), said, logits_processor, stopping_criteria, streamer)
            )
    if streamer is not None:
        streamer.end()
    return _output(written, input_ids, generation_config)


@dataclass(frozen=True)
class Written:
    """A text, written.

    Attributes:
        tokens: prompt and padding included.
        logits: (1, V) float32 of each new token, where they were asked for.
        scores: likewise, processed.
    """

    tokens: list[int]
    logits: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]


def _keep(said: list[Tensor], _: list[int], logits: Tensor) -> None:
    said += logits.clone()


def _write(
    decoding: Decoding,
    prompt: list[int],
    kept: list[Tensor] | None,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    streamer: Any,
) -> Written:
    """Decode until a criterion is met, and forget what was accepted behind it."""
    tokens, logits, scores = list(prompt), [], []
    writing = rounds(decoding)
    for progress in writing:
        for place in range(len(tokens) - len(prompt), progress.new_tokens):
            before = torch.tensor([tokens], device=decoding.target.device)
            if kept is not None:
                # As ``generate`` has them.
                said = kept[place][None].float()
                logits.append(said)
                scores.append(processors(before, said.clone()))
            tokens.append(progress.tokens[progress.prompt_length + place])
            if streamer is not None:
                streamer.put(torch.tensor(tokens[-1:]))
            ids = torch.tensor([tokens], device=decoding.target.device)
            if bool(criteria(ids, tuple(scores) or None).any()):
                writing.close()
                return Written(tokens, tuple(logits), tuple(scores))
    return Written(tokens, tuple(logits), tuple(scores))


def _output(written: list[Written], input_ids: Tensor, config: GenerationConfig) -> Tensor | GenerateDecoderOnlyOutput:
    longest = max(len(each.tokens) for each in written)
    pad = config._pad_token_tensor
    if pad is None and any(len(each.tokens) < longest for each in written):
        raise InputError("texts of different lengths need a pad_token_id")
    padding = [] if pad is None else [int(pad)]
    rows = [each.tokens + padding * (longest - len(each.tokens)) for each in written]
    sequences = torch.tensor(rows, device=input_ids.device)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=written[0].scores if config.output_scores else None,
        logits=written[0].logits if config.output_logits else None,
    )


def _pair(
    model: PreTrainedModel, ea_model_path: str | None, draft_model_path: str | None, drafter: str | None
) -> EaModel:
    """The model with what drafts for it, loaded once and kept with the model."""
    if ea_model_path is None and draft_model_path is None and drafter not in PICKING:
        raise InputError(
            "nothing drafts: give ea_model_path (an EAGLE-3 head), draft_model_path, or drafter=... of "
            f"{', '.join(PICKING)}, which need no model"
        )
    if any(module.training for module in model.modules()):
        raise InputError("the model is in training mode (its dropout is on); call eval() on it first")
    _, head = assets.resolve_base_and_head(str(model.name_or_path), ea_model_path)
    kept = model.__dict__.setdefault(KEPT, {})
    key = head, draft_model_path
    if key not in kept:
        with _attention_of(target := Target(model)):
            refuse_wrong_scores(target)
            drafts = Drafts(head, draft_model_path)
            offers = offers_of(drafts, target, str(model.name_or_path), None, Bounds())
        kept[key] = EaModel(target, offers, str(model.name_or_path))
    return kept[key]


@contextlib.contextmanager
def _attention_of(target: Target) -> Iterator[None]:
    """Within this context the model computes attention as a target does, afterwards as it did before."""
    model, own = target.model, target.attention
    model.set_attn_implementation(own)
    try:
        yield
    finally:
        if target.attention_before != own:
            model.set_attn_implementation(target.attention_before)


def _ends(criteria: StoppingCriteriaList) -> frozenset[int]:
    """Tokens that end a text whatever stands before them."""
    found = (getattr(criterion, "eos_token_id", None) for criterion in criteria)
    return frozenset(int(token) for ids in found if isinstance(ids, Tensor) for token in ids.flatten())


def _limit(config: GenerationConfig, target: Target, padding: int) -> int:
    limit, context = config.max_length - padding, target.context_length
    if context is not None and limit > context:
        raise InputError(
            f"a text of up to {limit} tokens is longer than the model's context of {context}; lower max_new_tokens or "
            "max_length"
        )
    return limit


def _given_to_generate(*names: str) -> list[Any]:
    """What ``generate`` was given and does not hand on to a function in the place of its own decoding."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not inspect.unwrap(GenerationMixin.generate).__code__:
        frame = frame.f_back
    return [None if frame is None else frame.f_locals.get(name) for name in names]


def _refuse_what_is_not_honoured(
    model: PreTrainedModel,
    config: GenerationConfig,
    processors: LogitsProcessorList,
    model_kwargs: dict[str, Any],
    assistant: object,
) -> None:
    """Refuse what would be another text, or another output, than that of ``generate``.

    Raises:
        InputError: names it.
    """
    cache, embeds = model_kwargs.get("past_key_values"), model_kwargs.get("inputs_embeds")
    asked = {
        "beam search (num_beams)": config.num_beams > 1,
        "contrastive search (penalty_alpha)": bool(config.penalty_alpha),
        "DoLa (dola_layers)": config.dola_layers is not None,
        "assisted decoding (assistant_model)": assistant is not None,
        "assisted decoding (prompt_lookup_num_tokens)": config.prompt_lookup_num_tokens is not None,
        "an encoder-decoder model": bool(model.config.is_encoder_decoder),
        "inputs_embeds": embeds is not None,
        "a cache of an earlier text (past_key_values)": cache is not None and cache.get_seq_length() > 0,
        "output_attentions": bool(config.return_dict_in_generate and config.output_attentions),
        "output_hidden_states": bool(config.return_dict_in_generate and config.output_hidden_states),
    }
    asked |= {
        f"{type(processor).__name__}, which is no function of a text and its logits": True
        for processor in processors
        if isinstance(processor, STATEFUL)
    }
    for what, wanted in asked.items():
        if wanted:
            raise InputError(f"speculative_generate does not do {what}; leave it or custom_generate out")
