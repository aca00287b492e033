"""Position encodings that change with the length of a text.

With ``longrope`` (Phi-3 and its kin) all positions of a forward are rotated by one of two sets of factors: by the long
ones as soon as any of them lies at ``original_max_position_embeddings`` or behind. Keys in the cache stay as they were
rotated, unless the model reads its text anew at that point, as Phi-3's ``generate`` does. What ``generate`` does token
by token a tree and a prompt read in pieces have to do, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from eagle.errors import InputError
from eagle.target.context import encodings, kind

LONGROPE = "longrope"


@dataclass(frozen=True)
class Switch:
    """Where the encoding of positions changes.

    Attributes:
        at: forwards with a position of this or more use the long factors for all their positions.
        rereads: whether the stock model reads the whole text anew when its cache has grown to ``at`` positions.
    """

    at: int
    rereads: bool

    def levels(self, root: int, levels: int) -> int:
        """Of the levels below a root at a position, those that its own forward encodes as steps of single tokens do.

        Args:
            root: position of the root.
            levels: that may be drafted.
        """
        return levels if root >= self.at else min(levels, self.at - 1 - root)


def switch_of(model: PreTrainedModel) -> Switch | None:
    """The switch of a model; None for one whose positions are encoded alike in texts of all lengths.

    Encodings of the type ``dynamic`` change with every token behind ``max_position_embeddings``, where no text gets.

    Raises:
        InputError: a switch at several lengths, or one of which cannot be told whether the model reads its text anew.
    """
    config = model.config.get_text_config(decoder=True)
    places = {int(rope["original_max_position_embeddings"]) for rope in encodings(config) if kind(rope) == LONGROPE}
    if not places:
        return None
    name = type(model).__name__
    if len(places) > 1:
        raise InputError(
            f"{name} changes its position encoding at several lengths ({sorted(places)}), which is not supported"
        )
    at = places.pop()
    return Switch(at, _rereads(model, at))


def _rereads(model: PreTrainedModel, at: int) -> bool:
    """Whether the model's own ``generate`` throws its cache away when the text gets one token longer than ``at``."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, at, 1), torch.zeros(1, 1, at, 1), 0)
    try:
        inputs = model.prepare_inputs_for_generation(
            torch.zeros(1, at + 1, dtype=torch.int64), next_sequence_length=1, past_key_values=cache
        )
    except Exception as error:  # whatever a model's own code raises on a made-up cache
        raise InputError(
            f"{type(model).__name__} changes its position encoding behind {at} tokens, and whether it reads its text "
            f"anew there cannot be told ({type(error).__name__}: {error}); it is not supported"
        ) from error
    return inputs.get("past_key_values") is None
