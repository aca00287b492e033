"""A sorted draft: the first layers of a target, with exits after some of them.

Source: S2D (arXiv 2407.01955). Every exit is the shared final norm and output layer on the hidden states behind its
last layer, so each is a smaller model inside the next one. The layers are stock modules of transformers, run one by
one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eagle.errors import InputError
from eagle.target.compiled import decoder_layers
from eagle.target.int8 import prepare_draft_weights, quantized
from eagle.target.kv_cache import LayerSlots, TreeCache
from eagle.target.masks import additive_masks
from eagle.target.target import Target

# Rows of what is tried when a model is found to be run layer by layer as it is as a whole, and the error allowed, of
# the spread of the logits; with an 8-bit output layer, whose rows the draft has as they were before.
TRIED, ROUNDINGS, AT_LEAST, OF_8_BITS = 7, 20.0, 1e-3, 0.05


@dataclass(frozen=True)
class Rows:
    """Tokens that some layers are to be run on.

    Attributes:
        slots: (n,) int64 on the host, where their keys and values go.
        positions: (n,) int64 on the host.
        seen: (n, width) bool on the host, the places of the cache that each attends to, its own included.
        key_positions: (width,) int64 on the host, of these places.
    """

    slots: Tensor
    positions: Tensor
    seen: Tensor
    key_positions: Tensor


class SortedModel:
    """The first layers of a target, with exits.

    Args:
        model: a stock model with these layers only, in evaluation mode.
        exits: after how many layers, ascending; the last one is after all of them.
        draft_ids: (D,) int64, the target ids that are drafted, on the model's device.

    Raises:
        InputError: exits that the layers do not have, or a model whose layers cannot be run one by one.

    Attributes:
        compiled: what is run in the place of ``through``, or None.
    """

    def __init__(self, model: PreTrainedModel, exits: Sequence[int], draft_ids: Tensor) -> None:
        self.scorer = Target(model)
        self.layers = decoder_layers(model, len(self.scorer.windows))
        if not exits or list(exits) != sorted(set(exits)) or exits[0] < 1 or exits[-1] != len(self.layers):
            raise InputError(
                f"exits must be ascending numbers of layers, the last one all {len(self.layers)}, not "
                f"{', '.join(map(str, exits)) or 'none'}"
            )
        self.exits, self.draft_ids = tuple(exits), draft_ids
        base: Any = model.base_model
        parts: list[Any] = [getattr(base, name, None) for name in ("embed_tokens", "norm", "rotary_emb")]
        output = model.get_output_embeddings()
        if None in parts or not isinstance(output, nn.Module) or getattr(output, "bias", None) is not None:
            raise InputError(f"the layers of {type(model).__name__} cannot be run one by one, see docs/drafters.md")
        self._embed, self._norm, self._rotary = parts
        # Apart from the model, whose own output layer is for the whole vocabulary.
        self._ends = nn.ModuleDict({"output": _rows_of(model, draft_ids)})
        self.compiled: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._refuse_another_model(model)

    def prepare(self, quantize: str | None) -> None:
        """Put the weights into the form in which drafting multiplies by them, see ``prepare_draft_weights``.

        Args:
            quantize: as the target.

        Raises:
            InputError: a draft that cannot be quantised, though the target is.
        """
        for module in (*self.layers, self._ends):
            prepare_draft_weights(module, quantize)

    @property
    def blocks(self) -> int:
        """Runs of layers, each up to an exit."""
        return len(self.exits)

    def embed(self, tokens: Tensor) -> Tensor:
        """(n,) target ids -> (n, H) hidden states."""
        return self._embed(tokens.to(self.scorer.device))

    def run(self, blocks: range, hidden: Tensor, rows: Rows, cache: TreeCache) -> tuple[Tensor, Tensor]:
        """Run the layers of blocks.

        Args:
            blocks: one after the other, the first of them behind the exit at which the rows are.
            hidden: (n, H) there.
            rows: where the n tokens are.
            cache: of all layers, which holds what the rows attend to.

        Returns:
            (n, H) hidden states behind the last block, and (n, D) logits there.
        """
        device, width = hidden.device, rows.seen.shape[1]
        masks = additive_masks(rows.seen, rows.positions, rows.key_positions, self.scorer.windows, hidden.dtype)
        masks = (
            masks.to(device) if isinstance(masks, Tensor) else {kind: mask.to(device) for kind, mask in masks.items()}
        )
        positions = rows.positions[None].to(device)
        memory = tuple(
            (layer.keys[:, :, :width], layer.values[:, :, :width])
            for layer in (cache.tree_layers[number] for number in self.numbers(blocks))
        )
        through, rotary = self.compiled or self.through, self._rotary(hidden[None], positions)
        return through(blocks, hidden, masks, positions, rows.slots.to(device), rotary, memory)

    def numbers(self, blocks: range) -> range:
        """Of the layers of blocks."""
        return range(self.exits[blocks.start - 1] if blocks.start else 0, self.exits[blocks.stop - 1])

    def through(
        self,
        blocks: range,
        hidden: Tensor,
        masks: Tensor | dict[str, Tensor],
        positions: Tensor,
        slots: Tensor,
        rotary: tuple[Tensor, Tensor],
        memory: tuple[tuple[Tensor, Tensor], ...],
    ) -> tuple[Tensor, Tensor]:
        """``run``, of tensors on the device.

        Args:
            blocks: see ``run``.
            hidden: (n, H).
            masks: (1, 1, n, width), additive; one for each kind of attention layer where there are several.
            positions: (1, n) int64.
            slots: (n,) int64.
            rotary: what the layers rotate queries and keys by.
            memory: keys and values of each layer, (1, heads, width, head_dim).

        Returns:
            See there.
        """
        states = hidden[None]
        for number, (keys, values) in zip(self.numbers(blocks), memory, strict=True):
            kind = "full_attention" if self.scorer.windows[number] is None else "sliding_attention"
            found = self.layers[number](
                states,
                attention_mask=masks if isinstance(masks, Tensor) else masks[kind],
                position_ids=positions,
                past_key_values=LayerSlots(keys, values, slots),
                use_cache=True,
                position_embeddings=rotary,
            )
            states = found if isinstance(found, Tensor) else found[0]
        return states[0], self._ends["output"](self._norm(states[0]))

    @torch.inference_mode()
    def _refuse_another_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that says something else when its layers are run one by one."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.scorer.vocab_size, (1, TRIED + 1), generator=generator)
        cache = self.scorer.new_cache(TRIED + 1)
        self.scorer.prefill(tokens[:, :1], cache, features=False)
        width = cache.view_masked(TRIED)
        places = torch.arange(1, TRIED + 1)
        rows = Rows(places, places, torch.arange(width) <= places[:, None], torch.arange(width))
        try:
            hidden = self.embed(tokens[0, 1:])
            for block in range(self.blocks):
                hidden, logits = self.run(range(block, block + 1), hidden, rows, cache)
            mine = logits.double().cpu()
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the layers of {type(model).__name__} cannot be run one by one: {reason}") from error
        whole = model(input_ids=tokens.to(self.scorer.device)).logits[0, 1:]
        expected = whole[:, self.draft_ids].double().cpu()
        self.scorer.recycle(cache)
        spread = expected - expected.mean(-1, keepdim=True)
        apart = float((mine - expected).norm() / spread.norm().clamp(min=1e-30))
        least = OF_8_BITS if quantized(model) else AT_LEAST
        if not apart <= max(least, ROUNDINGS * torch.finfo(self.scorer.dtype).eps):
            raise InputError(
                f"the layers of {type(model).__name__}, run one by one, say something else than the model does (by "
                f"{apart:.2g} of the spread of its logits): it does more between them"
            )


def _rows_of(model: PreTrainedModel, draft_ids: Tensor) -> nn.Linear:
    """The rows of a model's output layer that are drafted."""
    # An 8-bit output layer has none; the embeddings, where they are the same, have.
    ends: list[Any] = [model.get_output_embeddings()]
    if model.config.get_text_config(decoder=True).tie_word_embeddings:
        ends.append(model.get_input_embeddings())
    weight = next((end.weight for end in ends if getattr(end, "weight", None) is not None), None)
    if weight is None:
        raise InputError(
            "with --quantize int8 nothing is left of the target's output layer that a sorted draft could use; train "
            "one with --no-freeze-ends, or leave --quantize out"
        )
    rows = weight.detach()[draft_ids]
    output = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
    output.weight = nn.Parameter(rows, requires_grad=False)
    return output.eval()
