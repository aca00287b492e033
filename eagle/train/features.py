"""What the frozen target says of a packed batch: features everywhere, and its law of each answer token.

One forward of the stock model. Its attention runs document by document, as a ``transformers`` attention kernel: the
documents of a batch do not see each other, nothing is padded, and no mask over the whole batch is ever made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from eagle.errors import InputError
from eagle.target.target import Target, attention_windows, selected
from eagle.train.batches import Batch

PACKED = "packed_documents"
# Rows of logits turned into probabilities at a time, which on a CPU stay in its cache: in float32 they take 16 times
# what they do on the way in and out. Elsewhere it is launches that cost time.
CHUNK, LARGE_CHUNK = 64, 2048
NOT_IN_DRAFT = -1
# What some architectures ask of a kernel, and this one does not do.
REFUSED = {"softcap": "caps its attention scores", "s_aux": "has attention sinks", "position_bias": "biases positions"}


@dataclass(frozen=True)
class Reading:
    """What the target says of a batch of n tokens and R rows.

    Attributes:
        features: (n, k * H), the chosen hidden states side by side, in the target's dtype.
        law: (R, D) float32 (float64 for a float64 target), probabilities of the draft vocabulary's tokens, in its
            order, as the token a row predicts at step 0; the rest of a row's mass is outside the draft vocabulary.
        favourite: (R,) int64, draft id of the most likely token; ``NOT_IN_DRAFT`` where it is none.
    """

    features: Tensor
    law: Tensor
    favourite: Tensor


@dataclass(frozen=True)
class States:
    """A reading before its laws are made: what of it is worth keeping, for n tokens and R rows.

    Attributes:
        features: (n, k * H), as in ``Reading``.
        hidden: (R, H), what the target's ``lm_head`` read, in the target's dtype.
        favourite: (R,) int64, as in ``Reading``.
        log_norm: (R,) float32 or float64, logsumexp of all the target's logits.
    """

    features: Tensor
    hidden: Tensor
    favourite: Tensor
    log_norm: Tensor


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document; (1, heads, n, d) queries over (1, kv heads, n, d), gives (1, n, heads, d).

    Args:
        module: the attention layer, not looked at.
        query: of all documents, end to end.
        key: likewise.
        value: likewise.
        attention_mask: (1, 1, 1, 1 + documents) int64: the layer's window, 0 for none, and the documents' lengths.
        scaling: of the scores.
        **kwargs: what else the architecture asks for.

    Raises:
        InputError: it asks for something else than scaled dot products, see ``REFUSED``.
    """
    for name, what in REFUSED.items():
        if kwargs.get(name) is not None:
            raise InputError(f"the model {what} ({name})")
    window, *lengths = attention_mask.flatten().tolist()
    grouped = query.shape[1] != key.shape[1]
    mixed = []
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        seen = None
        if window and q.shape[2] > window:
            whole = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)
            seen = whole.tril() & whole.triu(1 - window)
        mixed.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, is_causal=seen is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(mixed, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)


def packed_masks(windows: Collection[int | None], lengths: Sequence[int]) -> Tensor | dict[str, Tensor]:
    """What ``packed_attention`` is told: see there; one for each kind of attention layer where there are several.

    Args:
        windows: of the layers, None for full attention.
        lengths: of the documents.
    """
    # Host integers, so that no layer waits for a device.
    masks = {window: torch.tensor([window or 0, *lengths])[None, None, None] for window in windows}
    if len(masks) == 1:
        return next(iter(masks.values()))
    return {"full_attention" if window is None else "sliding_attention": mask for window, mask in masks.items()}


def rows_at_once(device: torch.device) -> int:
    """Rows of one pass over the vocabulary."""
    return CHUNK if device.type == "cpu" else LARGE_CHUNK


class Reader:
    """Reads batches with a frozen target. From now on its model takes packed batches only.

    Args:
        target: the model, its ``feature_layers`` set; with none of them nothing but laws is read.
        vocabulary: (D,) int64, the target ids of the draft vocabulary.

    Attributes:
        obstacle: why documents are read one at a time; None: they are read together.
        wide: dtype of probabilities.
    """

    def __init__(self, target: Target, vocabulary: Tensor) -> None:
        self.target, self.vocabulary = target, vocabulary.to(target.device)
        self.wide = torch.float64 if target.dtype == torch.float64 else torch.float32
        self._lm_head = target.model.get_output_embeddings()
        self._windows = set(attention_windows(target.model))
        self.obstacle: str | None = None
        kernel = target.config._attn_implementation
        target.model.set_attn_implementation(PACKED)
        token = torch.zeros(1, dtype=torch.int64, device=target.device)
        try:
            self._forward(token, token, (1,), token)
        except InputError as error:
            self.obstacle = str(error)
            target.model.set_attn_implementation(kernel)

    @torch.no_grad()
    def read(self, batch: Batch) -> Reading:
        """Features and laws of a batch on the target's device."""
        features, laws = [], []
        for read, logits, _ in self._parts(batch):
            features.append(read)
            laws.append(self._law(logits))
        return Reading(torch.cat(features), *(torch.cat(parts) for parts in zip(*laws, strict=True)))

    @torch.no_grad()
    def states(self, batch: Batch) -> States:
        """The states of a batch on the target's device.

        Raises:
            InputError: the target's logits are not ``lm_head`` times a hidden state.
        """
        inputs: list[Tensor] = []
        handle = self._lm_head.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
        try:
            parts = list(self._parts(batch))
        finally:
            handle.remove()
        if not self.target.accepts_logits_to_keep:
            inputs = [read[rows] for read, (_, _, rows) in zip(inputs, parts, strict=True)]
        features, logits = (torch.cat([part[place] for part in parts]) for place in range(2))
        hidden = torch.cat(inputs)
        if not torch.allclose(self._lm_head(hidden[:1]), logits[:1], rtol=1e-2, atol=1e-2):
            raise InputError(
                "this target does more to its logits than multiply hidden states with lm_head, so its readings "
                "cannot be kept; leave out --keep-readings"
            )
        parts_of_logits = logits.split(rows_at_once(logits.device))
        log_norm = torch.cat([part.to(self.wide).logsumexp(-1) for part in parts_of_logits])
        drafted = torch.full((logits.shape[1],), NOT_IN_DRAFT, device=logits.device)
        drafted[self.vocabulary] = torch.arange(len(self.vocabulary), device=logits.device)
        return States(features, hidden, drafted[logits.argmax(-1)], log_norm)

    @torch.no_grad()
    def reading(self, states: States) -> Reading:
        """The reading that states make."""
        bias = self._lm_head.bias
        rows = self._lm_head.weight[self.vocabulary]
        logits = F.linear(states.hidden, rows, None if bias is None else bias[self.vocabulary])
        law = torch.empty(logits.shape, dtype=self.wide, device=logits.device)
        count = rows_at_once(logits.device)
        for part, log_norm, out in zip(*(each.split(count) for each in (logits, states.log_norm, law)), strict=True):
            torch.sub(part, log_norm[:, None], out=out).exp_()
        return Reading(states.features, law, states.favourite)

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features, logits and rows that predict them, of what is read at a time: the batch, or each document."""
        predicting = batch.rows + 1
        if self.obstacle is None:
            yield *self._forward(batch.tokens, batch.positions, batch.lengths, predicting), predicting
            return
        for (begin, end), rows in zip(batch.bounds, predicting.split(batch.counts), strict=True):
            of_document = rows - begin
            piece = batch.tokens[begin:end], batch.positions[begin:end]
            yield *self._forward(*piece, None, of_document), of_document

    @torch.no_grad()
    def _forward(
        self, tokens: Tensor, positions: Tensor, lengths: tuple[int, ...] | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(n, k * H) features, and (len(rows), V) logits of the tokens after ``rows``; no lengths: one document."""
        inputs: dict[str, Any] = {}
        if lengths is not None:
            inputs["attention_mask"] = packed_masks(self._windows, lengths)
        layers = list(self.target.feature_layers)
        keep = self.target.accepts_logits_to_keep
        if keep:
            inputs["logits_to_keep"] = rows
        output = self.target.model(
            input_ids=tokens[None],
            position_ids=positions[None],
            use_cache=False,
            output_hidden_states=layers or None,
            **inputs,
        )
        logits = output.logits[0] if keep else output.logits[0, rows]
        if not layers:
            return logits.new_empty(len(tokens), 0), logits
        chosen = selected(output.hidden_states, layers, len(self.target.windows))
        return torch.cat([states[0] for states in chosen], dim=-1), logits

    def _law(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(R, V) logits -> (R, D) probabilities in the draft vocabulary, (R,) favourites."""
        law = torch.empty(len(logits), len(self.vocabulary), dtype=self.wide, device=logits.device)
        favourite = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        count = rows_at_once(logits.device)
        for begin in range(0, len(logits), count):
            chunk = slice(begin, begin + count)
            probs = logits[chunk].softmax(-1, dtype=self.wide)
            torch.index_select(probs, 1, self.vocabulary, out=law[chunk])
            best, place = law[chunk].max(-1)
            favourite[chunk] = place.where(best == probs.amax(-1), NOT_IN_DRAFT)
        return law, favourite
