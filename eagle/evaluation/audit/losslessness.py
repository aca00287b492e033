"""A method's texts beside plain ones, prompt by prompt: what is drawn, and which tests are made of it.

- ``token j``: chi-square of the j-th new token. The first comes from reading the prompt; all others are decided by
  verification.
- ``texts``: a kernel test of whole texts, which counts the prefixes of two tokens or more that two of them share.
- ``tokens`` and ``texts`` of all prompts: sums of these, for biases too small to show behind a single prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eagle.chat_template import TemplateArguments, chat_ids, require_chat_template
from eagle.data.questions import Question
from eagle.decoding.method import Method
from eagle.errors import InputError
from eagle.evaluation.audit.continuations import ENDED, plain_texts, speculative_texts, token_limit
from eagle.evaluation.audit.two_sample import (
    Floats,
    chi_square,
    enough_permutations,
    holm,
    p_value,
    permuted,
    pooled,
    prefix_kernel,
)
from eagle.model.ea_model import EaModel
from eagle.target.processors import processors_of
from eagle.tree.warping import Warper

REFERENCE = 4
"""Plain texts for each of the method's: they cost little, and the fewer there are, the less can be seen."""
EVERY_PROMPT = "all prompts"
TOKENS, TEXTS = "tokens", "texts"


@dataclass(frozen=True)
class Settings:
    """What is audited, and how.

    Attributes:
        method: draws the texts.
        temperature: above 0.
        top_p: nucleus mass, 1 is off.
        top_k: most likely tokens kept, 0 is off.
        draws: texts of the method for each prompt.
        tokens: of each text.
        alpha: probability of finding a difference where there is none.
        seed: of everything random.
        chat_template_kwargs: what the chat template is given beside the prompt; None is nothing.
    """

    method: Method
    temperature: float
    top_p: float
    top_k: int
    draws: int
    tokens: int
    alpha: float
    seed: int
    chat_template_kwargs: TemplateArguments | None = None


@dataclass(frozen=True)
class PromptResult:
    """What was found behind one prompt.

    Attributes:
        question_id: of the question it asks.
        drafted: share of its tokens behind the first that were drafted and accepted.
        different: texts among those of the method.
        statistics: by test, (1 + permutations,) each, see ``two_sample.permuted``.
    """

    question_id: int | str
    drafted: float
    different: int
    statistics: dict[str, Floats]


@dataclass(frozen=True)
class Finding:
    """A p-value.

    Attributes:
        prompt: question id, or ``EVERY_PROMPT``.
        test: name.
        p: of this test alone.
        holm: corrected for the number of tests.
    """

    prompt: int | str
    test: str
    p: float
    holm: float


def audited(model: EaModel, questions: Sequence[Question], settings: Settings) -> Iterator[PromptResult]:
    """Draw and test behind the first turn of each question, with a progress bar.

    Args:
        model: the pair, with the bounds of the trees.
        questions: whose first turns are the prompts.
        settings: what is audited, and how.

    Raises:
        InputError: no chat template, or a prompt that does not fit the model (names the question).
    """
    tokenizer, arguments = model.get_tokenizer(), settings.chat_template_kwargs
    require_chat_template(tokenizer, model.base_model_path, arguments)
    prompts = []
    shape = model.shape_for(settings.method, settings.temperature)
    for question in questions:
        with _naming(question):
            ids = chat_ids(tokenizer, [{"role": "user", "content": question.turns[0]}], arguments)
            prompts.append(ids.to(model.device))
            token_limit(model, shape, prompts[-1], settings.tokens)
    permutations = enough_permutations(len(questions) * settings.tokens + 2, settings.alpha)
    with tqdm(total=len(questions) * settings.draws, unit="text", dynamic_ncols=True) as bar:
        for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
            bar.set_description(f"question {question.question_id}")
            with _naming(question):
                result = _audited_prompt(model, question, prompt, settings, permutations, number, bar)
            yield result


def _audited_prompt(
    model: EaModel,
    question: Question,
    prompt: Tensor,
    settings: Settings,
    permutations: int,
    number: int,
    bar: tqdm[Any],
) -> PromptResult:
    seeds = np.random.SeedSequence((settings.seed, number)).generate_state(3).tolist()
    warper = Warper(settings.temperature, settings.top_p, settings.top_k)
    stop_ids = model.stop_ids()
    shape = model.shape_for(settings.method, settings.temperature)
    limit = token_limit(model, shape, prompt, settings.tokens)
    processors = processors_of(model.base_model, prompt, limit, stop_ids)
    drawn = speculative_texts(
        model,
        settings.method,
        prompt,
        warper,
        settings.draws,
        settings.tokens,
        stop_ids,
        torch.Generator().manual_seed(seeds[0]),
        bar.update,
        processors,
    )
    plain = plain_texts(
        model.base_model,
        prompt,
        warper,
        REFERENCE * settings.draws,
        settings.tokens,
        stop_ids,
        torch.Generator().manual_seed(seeds[1]),
        processors,
    )
    texts = np.concatenate([drawn.texts, plain])
    tests = {f"token {place + 1}": chi_square(texts[:, place], settings.draws) for place in range(1, settings.tokens)}
    tests[TEXTS] = prefix_kernel(texts, settings.draws, shortest=2)
    statistics = permuted(list(tests.values()), settings.draws, permutations, np.random.default_rng(seeds[2]))
    return PromptResult(
        question.question_id,
        drafted=float(drawn.drafted.sum() / max(1, (drawn.texts[:, 1:] != ENDED).sum())),
        different=len(np.unique(drawn.texts, axis=0)),
        statistics=dict(zip(tests, statistics, strict=True)),
    )


def findings(found: Sequence[PromptResult]) -> list[Finding]:
    """The p-values of every prompt, and those of all prompts together."""
    family = [
        (result.question_id, test, statistics) for result in found for test, statistics in result.statistics.items()
    ]
    of_tokens = [statistics for _, test, statistics in family if test != TEXTS]
    of_texts = [statistics for _, test, statistics in family if test == TEXTS]
    family += [(EVERY_PROMPT, TOKENS, pooled(of_tokens)), (EVERY_PROMPT, TEXTS, pooled(of_texts))]
    p_values = [p_value(statistics) for _, _, statistics in family]
    return [
        Finding(prompt, test, p, corrected)
        for (prompt, test, _), p, corrected in zip(family, p_values, holm(p_values), strict=True)
    ]


@contextlib.contextmanager
def _naming(question: Question) -> Iterator[None]:
    """Say which question an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"question {question.question_id}: {error}") from error
