"""Questions spread over several GPUs: one Ray actor per model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

from eagle.errors import InputError
from eagle.evaluation.answer import Answered, Answerer, AnswerSettings
from eagle.evaluation.loading import ModelChoice, load
from eagle.evaluation.questions import Question


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


def answer_all(choice: ModelChoice, settings: AnswerSettings, model_id: str, questions: Sequence[Question],
               workers: int) -> Iterator[Answered]:
    """Answer questions with ``workers`` models at once; yields them as they finish, in any order."""
    import ray
    from ray.util import ActorPool

    class Worker:
        def __init__(self) -> None:
            self.answerer = Answerer(load(choice), settings, model_id)
            if questions:
                self.answerer.warm_up(questions[0])

        def answer(self, question: Question) -> Answered:
            return self.answerer.answer(question)

    ray.init(ignore_reinit_error=True)
    try:
        remote = ray.remote(num_gpus=choice.gpus)(Worker)
        pool = ActorPool([remote.remote() for _ in range(workers)])
        yield from pool.map_unordered(lambda actor, question: actor.answer.remote(question), questions)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from error
        raise
    finally:
        ray.shutdown()
