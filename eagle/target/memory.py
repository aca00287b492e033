"""Keys and values that outlive their text, for another one that begins in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Layer(Protocol):
    """Where a layer's keys and values are written, each (1, heads, capacity, head_dim)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Memory:
    """What the layers of a model have of a text's first tokens.

    Attributes:
        states: of each layer its keys and values, each (1, heads, n, head_dim).
    """

    states: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, layers: Iterable[Layer], length: int) -> Memory:
        """Of the first ``length`` tokens, where they lie: until a text is written there again."""
        return cls(tuple((layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in layers))

    def copied(self) -> Memory:
        """The same, in memory of its own and no more than that."""
        return Memory(tuple((keys.clone(), values.clone()) for keys, values in self.states))

    @property
    def known(self) -> int:
        """n, the tokens that it is of."""
        return self.states[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.states)

    def of_first(self, count: int) -> Memory:
        """Of the first ``count`` of its tokens, in the same memory."""
        return Memory(tuple((keys[:, :, :count], values[:, :, :count]) for keys, values in self.states))
