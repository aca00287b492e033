"""What a model's ``generation_config`` does to its logits, done to every node of a tree.

A model may come with a repetition penalty, with tokens that it must not write, with n-grams that it must not repeat:
the stock ``generate`` then writes another text, and so does this package. These processors of ``transformers`` read
what was written so far; for a node of a tree that is the text and the path to the node.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, SynthIDTextWatermarkLogitsProcessor

from eagle.devices import sent
from eagle.errors import InputError
from eagle.tree.draft_tree import DraftTree

# Settings under which ``generate`` does something else than to take token after token from processed logits, each with
# the values that mean so.
NOT_HONOURED: dict[str, Callable[[Any], bool]] = {
    "num_beams": lambda value: value > 1,
    "num_return_sequences": lambda value: value > 1,
    "penalty_alpha": lambda value: value > 0,
    "dola_layers": lambda value: True,
    "constraints": lambda value: True,
    "force_words_ids": lambda value: True,
    "guidance_scale": lambda value: value != 1,
    "stop_strings": lambda value: True,
    "max_time": lambda value: True,
    "token_healing": bool,
    "assistant_ensemble_weight": lambda value: value > 0,
    "cache_implementation": lambda value: value == "quantized",
}


@dataclass(frozen=True)
class PathProcessors:
    """Logits processors of ``transformers``, applied to the nodes of trees.

    Attributes:
        processors: each a function of (n, length) tokens and (n, V) scores that treats every row by itself.
    """

    processors: LogitsProcessorList

    def __call__(self, logits: Tensor, tree: DraftTree, text: Sequence[int]) -> Tensor:
        """Process the logits of a tree's nodes.

        Args:
            logits: (N, V), any floating dtype.
            tree: N nodes.
            text: what was written up to the root, which is its last token.

        Returns:
            (N, V) float32 (float64 for float64 logits).
        """
        wide = logits if logits.dtype == torch.float64 else logits.float()
        written = torch.tensor(text, dtype=torch.int64)
        # Of one length are the texts of nodes of one depth.
        paths = tree.tokens.new_zeros(len(tree), tree.draft_length)
        for depth in range(1, tree.draft_length):
            nodes = (tree.depths >= depth).nonzero()[:, 0]
            above = _ancestors(tree, nodes, depth)
            paths[nodes, depth - 1] = tree.tokens[above]
        processed = torch.empty_like(wide)
        for depth in range(tree.draft_length):
            nodes = (tree.depths == depth).nonzero()[:, 0]
            texts = torch.cat([written.expand(len(nodes), -1), paths[nodes, :depth]], dim=1)
            rows = sent(nodes, wide.device)
            processed[rows] = self.processors(sent(texts, wide.device), wide[rows])
        return processed

    def of_draft(self, logits: Tensor, texts: Tensor, support: Tensor, vocab_size: int) -> Tensor:
        """Process a drafter's logits as the target's are, so that it does not draft what the target may not write.

        Args:
            logits: (k, D) over a draft vocabulary.
            texts: (k, length) int64, the target ids that each row follows.
            support: (D,) int64, the target ids of the columns.
            vocab_size: V of the target.

        Returns:
            (k, D) float32 (float64 for float64 logits); as they were where nothing that can be drafted is allowed.
        """
        wide = logits if logits.dtype == torch.float64 else logits.float()
        everywhere = wide.new_full((len(wide), vocab_size), -torch.inf)
        everywhere[:, support] = wide
        processed = self.processors(texts, everywhere)[:, support]
        return torch.where((processed > -torch.inf).any(-1, keepdim=True), processed, wide)

    def of_texts(self, logits: Tensor, texts: Tensor) -> Tensor:
        """Process (n, V) logits that follow (n, length) tokens, as the stock model's own ``generate`` does."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        processed: Tensor = self.processors(texts, wide)
        return processed


def _ancestors(tree: DraftTree, nodes: Tensor, depth: int) -> Tensor:
    """For nodes at a depth or below their ancestors at that depth, themselves included."""
    above = nodes
    while bool((deeper := tree.depths[above] > depth).any()):
        above = torch.where(deeper, tree.parents[above], above)
    return above


def processors_of(
    model: PreTrainedModel,
    prompt: Tensor,
    limit: int,
    stop_ids: frozenset[int],
    repetition_penalty: float | None = None,
) -> PathProcessors | None:
    """The processors that a model's ``generation_config`` asks for in one text; None for none.

    Its sampling values (``do_sample``, ``temperature``, ``top_p`` and the like) are not read: those are arguments here,
    as in the original EAGLE code.

    Args:
        model: the base model.
        prompt: (1, n) int64.
        limit: tokens of the text at most, the prompt included.
        stop_ids: tokens that end it.
        repetition_penalty: in the place of the one in the ``generation_config``; None: that one.

    Raises:
        InputError: a setting that cannot be honoured (names it), or values that ``transformers`` refuses.
    """
    config = model.generation_config
    if config is None:
        if repetition_penalty is None:
            return None
        config = GenerationConfig()
    refuse_what_is_not_honoured(config, model)
    asked = copy.deepcopy(config)
    asked.do_sample, asked.max_length = False, limit
    if repetition_penalty is not None:
        asked.repetition_penalty = repetition_penalty
    asked._eos_token_tensor = torch.tensor(sorted(stop_ids), device=prompt.device) if stop_ids else None
    try:
        processors = model._get_logits_processor(
            asked, input_ids_seq_length=prompt.shape[1], encoder_input_ids=prompt, device=prompt.device
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the generation_config of {_named(model)} cannot be used: {error}; mend that file") from error
    if any(isinstance(processor, SynthIDTextWatermarkLogitsProcessor) for processor in processors):
        _refuse("watermarking_config", "SynthID", model)
    return PathProcessors(processors) if processors else None


def refuse_what_is_not_honoured(config: GenerationConfig, model: PreTrainedModel) -> None:
    """Refuse settings under which the stock ``generate`` writes a text that this package would not.

    Raises:
        InputError: there is one; names it.
    """
    for name, matters in NOT_HONOURED.items():
        value = getattr(config, name, None)
        if value is not None and matters(value):
            _refuse(name, value, model)


def _refuse(name: str, value: object, model: PreTrainedModel) -> None:
    raise InputError(
        f"the generation_config of {_named(model)} sets {name}={value!r}, with which generate() writes a text that "
        "speculative decoding does not; remove it from generation_config.json, or set it to None on "
        "base_model.generation_config"
    )


def _named(model: PreTrainedModel) -> str:
    return str(model.name_or_path or type(model).__name__)
