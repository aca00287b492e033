"""The runs of a sorted draft through its layers, compiled.

From one exit that nodes may leave at to the next is one function, with what is said there: for every number of nodes,
behind a text of every length. The compiler makes something else of a single row, so that is a function of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from eagle.drafters.sorted.model import Rows, SortedModel
from eagle.launches import CompiledForms, mark_varying

# Places of a cache, and rows: sizes that nothing in a draft has by itself.
PLACES, ROWS = 131, 13


class CompiledBlocks:
    """``SortedModel.through``, compiled for the runs of blocks that there are.

    Args:
        model: its weights in the form in which they are multiplied.
        runs: of blocks; others are run as they are.
    """

    def __init__(self, model: SortedModel, runs: Iterable[range]) -> None:
        self._model, self._runs = model, frozenset(runs)
        self._compiled = CompiledForms(SortedModel.through)
        self.varying: tuple[int, ...] = ()

    def __call__(self, blocks: range, *inputs: Any) -> tuple[Tensor, Tensor]:
        """See ``SortedModel.through``."""
        if self.varying:
            masks = inputs[1] if isinstance(inputs[1], Tensor) else tuple(inputs[1].values())
            mark_varying((*inputs, masks), self.varying)
        if blocks not in self._runs:
            return self._model.through(blocks, *inputs)
        found: tuple[Tensor, Tensor] = self._compiled((blocks, len(inputs[0]) == 1), self._model, blocks, *inputs)
        return found


@torch.inference_mode()
def compiled_blocks(model: SortedModel, routes: Iterable[Sequence[int]]) -> CompiledBlocks:
    """Compile a sorted draft, all of it at once.

    Args:
        model: its weights in the form in which they are multiplied.
        routes: exits that nodes may leave at, each from the first to the last of a text.
    """
    runs = {range(a + 1, b + 1) for route in routes for a, b in itertools.pairwise((-1, *route))}
    blocks = CompiledBlocks(model, runs)
    cache = model.scorer.new_cache(PLACES + ROWS)
    model.scorer.prefill(torch.zeros(1, 1, dtype=torch.int64), cache, features=False)
    before, model.compiled = model.compiled, blocks
    try:
        for run, count in itertools.product(sorted(runs, key=str), (1, ROWS)):
            places = torch.arange(PLACES - count, PLACES)
            rows = Rows(places, places, torch.ones(count, PLACES, dtype=torch.bool), torch.arange(PLACES))
            blocks.varying = (ROWS, PLACES)
            model.run(run, model.embed(torch.zeros(count, dtype=torch.int64)), rows, cache)
    finally:
        blocks.varying, model.compiled = (), before
        model.scorer.recycle(cache)
    return blocks
