"""Questions spread over several GPUs: one Ray actor per model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from eagle.errors import InputError
from eagle.evaluation.answer import Answered, Answerer, AnswerSettings
from eagle.evaluation.loading import ModelChoice, load
from eagle.evaluation.questions import Question
from eagle.evaluation.records import Record
from eagle.model.ea_model import best_device


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
        choice: the pair.
        settings: how to answer.
        model_id: name in the answers.
    """

    def __init__(self, choice: ModelChoice, settings: AnswerSettings, model_id: str) -> None:
        self._answerer = Answerer(load(choice), settings, model_id)
        self.facts = self._answerer.facts()

    def answer_all(self, questions: Sequence[Question]) -> Iterator[Answered]:
        """Warm up, then answer in order."""
        if questions:
            self._answerer.warm_up(questions[0])
        yield from map(self._answerer.answer, questions)


class ShardedModels:
    """Answers with several models at once, each in a Ray actor of its own.

    Args:
        choice: the pair; a tree to be tuned is tuned by the first model, for all.
        settings: how to answer.
        model_id: name in the answers.
        workers: models.
    """

    def __init__(self, choice: ModelChoice, settings: AnswerSettings, model_id: str, workers: int) -> None:
        import ray

        class Worker:
            def __init__(self, choice: ModelChoice) -> None:
                self.answerer = Answerer(load(choice), settings, model_id)

            def facts(self) -> Record:
                return self.answerer.facts()

            def warm_up(self, question: Question) -> None:
                self.answerer.warm_up(question)

            def answer(self, question: Question) -> Answered:
                return self.answerer.answer(question)

        ray.init(ignore_reinit_error=True, log_to_driver=False)
        on_gpu = (choice.device or best_device()).startswith("cuda")
        remote = ray.remote(num_gpus=choice.gpus if on_gpu else 0)(Worker)
        first = remote.remote(choice)
        self.facts: Record = _fetch(first.facts.remote())
        same_tree = replace(choice, total_token=self.facts.get("tree", {}).get("total_token", choice.total_token))
        self._workers = [first, *(remote.remote(same_tree) for _ in range(workers - 1))]

    def answer_all(self, questions: Sequence[Question]) -> Iterator[Answered]:
        """Warm up, then answer; yields in the order in which questions finish."""
        import ray
        from ray.util import ActorPool

        try:
            if questions:
                _fetch([worker.warm_up.remote(questions[0]) for worker in self._workers])
            pool = ActorPool(self._workers)
            for question in questions:
                pool.submit(lambda worker, question: worker.answer.remote(question), question)
            while pool.has_next():
                try:
                    yield pool.get_next_unordered()
                except ray.exceptions.RayError as error:
                    raise _reason(error) from error
        finally:
            ray.shutdown()


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
