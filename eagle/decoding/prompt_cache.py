"""What earlier texts leave to longer ones, so that of a conversation only what is new is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eagle.drafters.drafter import Drafter
from eagle.errors import InputError
from eagle.target.memory import Memory
from eagle.target.target import PREFILL_STEP, Target

DEFAULT_BYTES = 2**30
"""What chats and the server keep at most."""


@dataclass(frozen=True, eq=False)
class Remembered:
    """The first tokens of a text, and what models have of them.

    Attributes:
        tokens: (n,) int64 on the host.
        target: of the target.
        drafter: whose memory of the text there is beside it.
        draft: that memory; None: there is none.
    """

    tokens: Tensor
    target: Memory
    drafter: Drafter | None
    draft: Memory | None

    @cached_property
    def nbytes(self) -> int:
        """Bytes of what the models have."""
        return self.target.nbytes + (0 if self.draft is None else self.draft.nbytes)

    def serves(self, prompt: Tensor, drafter: Drafter | None) -> int:
        """How many of a prompt's first tokens need not be read again.

        Args:
            prompt: (m,) int64 on the host.
            drafter: whose memory is needed; None: none.
        """
        length = min(len(prompt), len(self.tokens))
        differ = (prompt[:length] != self.tokens[:length]).nonzero()
        # What the target says behind the last one is not remembered, nor what it was in front of another one.
        known = min(int(differ[0]) if len(differ) else length, len(prompt)) - 1
        known = min(known, self.target.known)
        if drafter is not None:
            known = min(known, self.draft.known if self.draft is not None and self.drafter is drafter else 0)
        # Kernels are generated for each number of keys, see ``Target.prefill``.
        return max(known, 0) // PREFILL_STEP * PREFILL_STEP


class PromptCache:
    """Keeps what models have of the texts that ended last, copied out of the caches that they were written in.

    Args:
        most_bytes: of all that is kept. The texts that were used longest ago go first.

    Attributes:
        nbytes: of all that is kept.

    Raises:
        InputError: a negative number.
    """

    def __init__(self, most_bytes: int) -> None:
        if most_bytes < 0:
            raise InputError(f"a prompt cache has 0 bytes or more, not {most_bytes}")
        self.most_bytes = most_bytes
        self.nbytes = 0
        self._texts: OrderedDict[Remembered, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, prompt: Sequence[int], drafter: Drafter) -> tuple[Memory, Memory | None] | None:
        """What the target and a drafter remember of a prompt's first tokens, as many for one as for the other; None
        where that is too little."""
        tokens, owner = torch.tensor(prompt), drafter.remembers
        served = {text: text.serves(tokens, owner) for text in self._texts}
        # Of several the newest.
        best = max(reversed(served), key=served.__getitem__, default=None)
        if best is None or not served[best]:
            return None
        self._texts.move_to_end(best)
        count = served[best]
        return best.target.of_first(count), None if owner is None or best.draft is None else best.draft.of_first(count)

    def keep(self, tokens: Sequence[int], target: Memory, drafter: Drafter | None, draft: Memory | None) -> None:
        """Keep what there is of a text. What is there of beginnings of it is not kept any longer.

        Args:
            tokens: of the text, of which the memories may be of fewer.
            target: of the target.
            drafter: see ``Remembered``.
            draft: see there.
        """
        if target.nbytes + (0 if draft is None else draft.nbytes) > self.most_bytes:
            return
        draft = None if draft is None else draft.copied()
        kept = Remembered(torch.tensor(tokens)[: target.known], target.copied(), drafter, draft)
        for text in list(self._texts):
            length = len(text.tokens)
            if text.drafter is drafter and torch.equal(text.tokens, kept.tokens[:length]):
                self._forget(text)
        self._texts[kept] = None
        self.nbytes += kept.nbytes
        while self.nbytes > self.most_bytes:
            self._forget(next(iter(self._texts)))

    def _forget(self, text: Remembered) -> None:
        del self._texts[text]
        self.nbytes -= text.nbytes


def can_remember(target: Target) -> bool:
    """Whether what a target has of a text serves longer ones: not where positions are encoded by the text's length."""
    return target.switch is None
