"""What two models' vocabularies have in common, token by token.

Embedding tables of one family differ in padding (Qwen2.5-0.5B has 151,936 rows, larger ones 152,064), so what is
compared are the strings of the two tokenizers' tokens, never the sizes of the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.errors import InputError

LEAST_SHARED = 0.5


@dataclass(frozen=True)
class SharedVocabulary:
    """Tokens that both models know under the same number, D of them. Others are never drafted.

    Attributes:
        support: (D,) int64, their ids, increasing, on the draft model's device.
        readable: (target vocabulary,) int64 on the host, what the draft model reads for each target token: the token
            itself, or, since it has to read something, any one where it lacks it.
        leading: whether they are the first D of both tables, so that columns need no gathering.
    """

    support: Tensor
    readable: Tensor
    leading: bool

    @property
    def target_size(self) -> int:
        """Tokens of the target's table."""
        return len(self.readable)

    def to_draft(self, tokens: Sequence[int]) -> Tensor:
        """Target ids -> (n,) int64 on the host, what the draft model reads."""
        return self.readable[torch.tensor(tokens, dtype=torch.int64)]

    def columns(self, logits: Tensor) -> Tensor:
        """(n, draft table) logits of the draft model -> (n, D)."""
        return logits[:, : len(self.support)] if self.leading else logits[:, self.support]

    def spread(self, law: Tensor) -> Tensor:
        """(D,) law -> (target table,), 0 where the draft model has no token."""
        return law.new_zeros(self.target_size).index_copy_(0, self.support, law)


def vocabulary_sha256(vocabulary: Mapping[str, int]) -> str:
    """What identifies a tokenizer's vocabulary, token -> id: under the same ids the same strings."""
    listed = "\n".join(f"{index} {token}" for token, index in sorted(vocabulary.items(), key=lambda item: item[1]))
    return hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()


def shared_vocabulary(
    target: Mapping[str, int], draft: Mapping[str, int], target_size: int, draft_size: int, device: torch.device
) -> SharedVocabulary:
    """Compare two tokenizers' vocabularies.

    Args:
        target: token -> id, of the target's tokenizer.
        draft: of the draft model's.
        target_size: rows of the target's table; ids behind it are none of its.
        draft_size: the same for the draft model.
        device: of the draft model.

    Raises:
        InputError: they have hardly a token in common under the same id.
    """
    ids = {index: token for token, index in draft.items() if index < draft_size}
    known = {index: token for token, index in target.items() if index < target_size}
    same = sorted(index for index, token in known.items() if ids.get(index) == token)
    if len(same) < LEAST_SHARED * len(known):
        raise InputError(
            f"the draft model has another tokenizer: of the target's {len(known)} tokens {len(same)} have the same "
            "string and number there; take a draft model of the same family"
        )
    support = torch.tensor(same)
    readable = torch.full((target_size,), same[0])
    readable[support] = support
    return SharedVocabulary(support.to(device), readable, leading=same[-1] == len(same) - 1)
