"""Where questions are answered: one model in this process, or several on as many GPUs, a Ray actor each.

Both load the pair once and answer all cells with it. A unit of work is one question in one cell.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from eagle import assets
from eagle.data.questions import Question
from eagle.devices import best_device
from eagle.errors import InputError
from eagle.evaluation.answering.answer import Answered, Answerer
from eagle.evaluation.answering.cells import Cell
from eagle.evaluation.answering.records import Record
from eagle.identity import BASE, DRAFT, HEAD, SORTED, base_identity, head_identity, unchanged
from eagle.model.loading import load_with_trees

Unit = tuple[int, Question]
"""The place of a cell, and the question to answer in it."""


def worker_count(gpus_total: int, gpus_per_model: int) -> int:
    """Models that run side by side.

    Raises:
        InputError: the numbers do not divide, or Ray is needed and not installed.
    """
    if gpus_per_model < 1 or gpus_total < 1 or gpus_total % gpus_per_model:
        raise InputError(
            f"--num-gpus-total ({gpus_total}) must be a positive multiple of --num-gpus-per-model ({gpus_per_model})"
        )
    workers = gpus_total // gpus_per_model
    if workers > 1 and importlib.util.find_spec("ray") is None:
        raise InputError(f"sharding questions over {workers} models needs Ray, which is not installed: pip install ray")
    return workers


class OneModel:
    """Answers with one model in this process.

    Args:
        cells: of one pair.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        pair = cells[0].choice
        base, head = pair.paths_of_models()
        draft = None if pair.draft_model_path is None else assets.resolve_base(pair.draft_model_path)
        exits = None if pair.sorted_draft is None else pair.sorted_draft.folder
        with unchanged(*(path for path in (base, head, draft, exits) if path is not None)):
            model, self._trees = load_with_trees([cell.choice for cell in cells])
            self._model = model
            identities = {BASE: base_identity(base)}
            if head is not None:
                identities[HEAD] = head_identity(head)
            if draft is not None:
                identities[DRAFT] = base_identity(draft)
            if exits is not None:
                identities[SORTED] = head_identity(exits)
            self._answerers = [
                Answerer(model, tree, cell.settings, cell.model_id, identities)
                for cell, tree in zip(cells, self._trees, strict=True)
            ]

    def facts(self) -> list[Record]:
        """What shapes the text of each cell and is known only of a loaded model."""
        return [answerer.facts() for answerer in self._answerers]

    def sizes(self) -> list[int]:
        """Nodes of each cell's trees."""
        return [tree.total_token for tree in self._trees]

    def warm_up(self, firsts: Mapping[int, Question]) -> None:
        """Decode a little in every cell named, with the question it begins with."""
        for place, question in firsts.items():
            self._answerers[place].warm_up(question)

    def answer(self, unit: Unit) -> tuple[int, Answered]:
        """Answer a question in a cell; returns the cell's place, too."""
        place, question = unit
        return place, self._answerers[place].answer(question)

    def answer_all(self, units: Sequence[Unit]) -> Iterator[tuple[int, Answered]]:
        """Warm up, then answer in order."""
        self._model.expect(sum(self._answerers[place].most_tokens(question) for place, question in units))
        self.warm_up(_firsts(units))
        yield from map(self.answer, units)


class ShardedModels:
    """Answers with several models at once, each in a Ray actor of its own.

    Args:
        cells: of one pair; trees to be measured are measured by the first model, for all.
        workers: models.
    """

    def __init__(self, cells: Sequence[Cell], workers: int) -> None:
        import ray

        ray.init(ignore_reinit_error=True, log_to_driver=False)
        pair = cells[0].choice
        on_gpu = (pair.device or best_device()).startswith("cuda")
        remote = ray.remote(num_gpus=pair.gpus if on_gpu else 0)(OneModel)
        first = remote.remote(cells)
        self._facts: list[Record] = _fetch(first.facts.remote())
        same_trees = [
            replace(cell, choice=replace(cell.choice, total_token=size))
            for cell, size in zip(cells, _fetch(first.sizes.remote()), strict=True)
        ]
        self._workers = [first, *(remote.remote(same_trees) for _ in range(workers - 1))]
        for facts in _fetch([worker.facts.remote() for worker in self._workers]):
            # On several machines the same path may be other files.
            if facts != self._facts:
                raise InputError("the workers did not load the same models, dtype or kind of device: compare the files")

    def facts(self) -> list[Record]:
        """As ``OneModel.facts``."""
        return self._facts

    def answer_all(self, units: Sequence[Unit]) -> Iterator[tuple[int, Answered]]:
        """Warm up, then answer; yields in the order in which questions finish."""
        import ray
        from ray.util import ActorPool

        try:
            _fetch([worker.warm_up.remote(_firsts(units)) for worker in self._workers])
            pool = ActorPool(self._workers)
            for unit in units:
                pool.submit(lambda worker, unit: worker.answer.remote(unit), unit)
            while pool.has_next():
                try:
                    yield pool.get_next_unordered()
                except ray.exceptions.RayError as error:
                    raise _reason(error) from error
        finally:
            ray.shutdown()


def _firsts(units: Sequence[Unit]) -> dict[int, Question]:
    """The first question of every cell that has any."""
    return dict(reversed(units))


def _fetch(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        raise _reason(error) from error


def _reason(error: Exception) -> InputError:
    """What went wrong in a worker, without Ray's account of where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "Error: " in line), lines[-1] if lines else repr(error))
    return InputError(f"a worker failed: {told}")
