"""A sorted draft: the first layers of a target, with exits after some of them.

Source: S2D (arXiv 2407.01955). Every exit is the shared final norm and output layer on the hidden states behind its
last layer, so each is a smaller model inside the next one. The layers are stock modules of transformers, run one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from eagle.errors import InputError
from eagle.target.compiled import decoder_layers
from eagle.target.kv_cache import LayerSlots, TreeCache
from eagle.target.masks import additive_masks
from eagle.target.target import Target

# Rows of what is tried when a model is found to be run layer by layer as it is as a whole, and the error allowed, of
# the spread of the logits.
TRIED, ROUNDINGS, AT_LEAST = 7, 20.0, 1e-3


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
        weight: Tensor = getattr(output, "weight")  # noqa: B009  # a module's attributes may be anything
        self.output = weight.detach()[draft_ids]
        self._refuse_another_model(model)

    @property
    def blocks(self) -> int:
        """Runs of layers, each up to an exit."""
        return len(self.exits)

    def embed(self, tokens: Tensor) -> Tensor:
        """(n,) target ids -> (n, H) hidden states."""
        return self._embed(tokens.to(self.scorer.device))

    def run(self, block: int, hidden: Tensor, rows: Rows, cache: TreeCache) -> Tensor:
        """Run the layers up to an exit.

        Args:
            block: which.
            hidden: (n, H) behind the exit before it.
            rows: where the n tokens are.
            cache: of all layers, which holds what the rows attend to.

        Returns:
            (n, H) hidden states.
        """
        device, width = hidden.device, rows.seen.shape[1]
        masks = additive_masks(rows.seen, rows.positions, rows.key_positions, self.scorer.windows, hidden.dtype)
        masks = (
            masks.to(device) if isinstance(masks, Tensor) else {kind: mask.to(device) for kind, mask in masks.items()}
        )
        positions, slots, states = rows.positions[None].to(device), rows.slots.to(device), hidden[None]
        rotary = self._rotary(states, positions)
        for number in range(self.exits[block - 1] if block else 0, self.exits[block]):
            memory, window = cache.tree_layers[number], self.scorer.windows[number]
            kind = "full_attention" if window is None else "sliding_attention"
            states = self.layers[number](
                states,
                attention_mask=masks if isinstance(masks, Tensor) else masks[kind],
                position_ids=positions,
                past_key_values=LayerSlots(memory.keys[:, :, :width], memory.values[:, :, :width], slots),
                use_cache=True,
                position_embeddings=rotary,
            )
            states = states if isinstance(states, Tensor) else states[0]
        return states[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, H) hidden states behind any exit -> (n, D) logits."""
        return functional.linear(self._norm(hidden), self.output)

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
                hidden = self.run(block, hidden, rows, cache)
            mine = self.logits(hidden).double().cpu()
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the layers of {type(model).__name__} cannot be run one by one: {reason}") from error
        whole = model(input_ids=tokens.to(self.scorer.device)).logits[0, 1:]
        expected = whole[:, self.draft_ids].double().cpu()
        self.scorer.recycle(cache)
        spread = expected - expected.mean(-1, keepdim=True)
        apart = float((mine - expected).norm() / spread.norm().clamp(min=1e-30))
        if not apart <= max(AT_LEAST, ROUNDINGS * torch.finfo(self.scorer.dtype).eps):
            raise InputError(
                f"the layers of {type(model).__name__}, run one by one, say something else than the model does (by "
                f"{apart:.2g} of the spread of its logits): it does more between them"
            )
