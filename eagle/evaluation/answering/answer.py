"""Answering a question: a chat of one or more turns, decoded and timed."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import shortuuid
import torch
from torch import Tensor

from eagle.chat_template import TemplateArguments, chat_ids, require_chat_template
from eagle.data.questions import Question
from eagle.decoding.info import DecodingInfo, no_rounds
from eagle.decoding.method import DRAFT_MODEL, PICKING, Method
from eagle.decoding.method import SORTED as SORTED_DRAFT
from eagle.errors import InputError, PromptError
from eagle.evaluation.answering.few_shot import user_turn
from eagle.evaluation.answering.layouts import FASTCHAT, SPEC_BENCH, as_spec_bench
from eagle.evaluation.answering.records import UNANSWERED, Record
from eagle.identity import BASE, DRAFT, HEAD, SORTED, Identity
from eagle.model.ea_model import EaModel
from eagle.text import before_stop, token_ends
from eagle.tree.shape import TreeShape

WARM_UP_TOKENS = 16
PLAIN = "Hello"
# Keys of a turn that go into the answers, the others into the info.
OF_A_CHOICE = ("turns", "idxs", "new_tokens", "wall_time")


@dataclass(frozen=True)
class AnswerSettings:
    """What shapes the text of an answer, beside the model.

    Attributes:
        drafting: kind of tree and verification rule; None is the baseline, autoregressive decoding.
        temperature: 0 is greedy.
        top_p: nucleus mass, 1 is off.
        top_k: most likely tokens kept, 0 is off.
        max_new_token: new tokens a turn.
        num_choices: answers to each question.
        seed: base of every turn's own seed.
        system_prompt: put before the conversation; None leaves that to the chat template.
        chat_template_kwargs: what the chat template is given beside the conversation; None is nothing.
        few_shot: exemplars before every question, in its first user turn, see ``few_shot.read_exemplars``.
        keep_context: what was looked up in stays from question to question.
        layout: of the answers, one of ``layouts.LAYOUTS``.
        min_p: see ``SamplingParams``, and so the next two.
        repetition_penalty: see there.
        stop: see there; an answer ends in front of such a string.
    """

    drafting: Method | None
    temperature: float
    top_p: float
    top_k: int
    max_new_token: int
    num_choices: int
    seed: int
    system_prompt: str | None
    chat_template_kwargs: TemplateArguments | None = None
    few_shot: str | None = None
    keep_context: bool = False
    layout: str = FASTCHAT
    min_p: float = 0.0
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """A finished question: the line for the answers, the lines for the info, and totals for the progress bar."""

    answer: Record
    infos: list[Record]
    new_tokens: int
    seconds: float
    rounds: int
    accepted: int


class Answerer:
    """Answers questions with one model.

    Args:
        model: the pair.
        tree: bounds of the method's trees.
        settings: how.
        model_id: name in the answers.
        identities: of base model and head, by ``identity.BASE`` and ``HEAD``.

    Raises:
        InputError: see ``require_chat_template``.
    """

    def __init__(
        self,
        model: EaModel,
        tree: TreeShape,
        settings: AnswerSettings,
        model_id: str,
        identities: Mapping[str, Identity],
    ) -> None:
        self.model, self.settings, self.model_id, self.identities = model, settings, model_id, identities
        self.tree = None if settings.drafting is None else settings.drafting.shape(tree)
        self.drafter = None if settings.drafting is None else settings.drafting.drafter
        self.tokenizer = model.get_tokenizer()
        require_chat_template(
            self.tokenizer, model.base_model_path, settings.chat_template_kwargs, settings.system_prompt
        )

    def facts(self) -> Record:
        """What shapes the text and is known only of a loaded model."""
        target = self.model.target
        facts: Record = {BASE: self.identities[BASE]}
        facts |= {"dtype": str(target.dtype).removeprefix("torch."), "device": target.device.type}
        if self.tree is not None and self.drafter is not None:
            facts |= {"tree": self.tree.at(self.settings.temperature).record()}
            settled = dict(self.model.offers[self.drafter].drafter.settled)
            if settled:
                facts[self.drafter] = settled
            if self.drafter not in PICKING:
                drafted = {DRAFT_MODEL: DRAFT, SORTED_DRAFT: SORTED}.get(self.drafter, HEAD)
                facts[drafted] = self.identities[drafted]
        return facts

    def most_tokens(self, question: Question) -> int:
        """New tokens that the answers to a question may come to."""
        return self.settings.max_new_token * len(question.turns) * self.settings.num_choices

    def warm_up(self, question: Question) -> None:
        """Decode a little, so that what happens only once stays out of the timings.

        Raises:
            InputError: as ``answer``; also a model that cannot answer a plain question either.
        """
        try:
            with _naming(question):
                self._begin_answer(question.turns[0])
        except PromptError:
            # Every question has a first turn, so what refuses a plain one would refuse them all: a template that takes
            # no system message, a system prompt or exemplars as long as the context, a tokenizer of another model.
            self._begin_answer(PLAIN)

    def _begin_answer(self, text: str) -> None:
        prompt = self._prompt([*self._system(), self._user(0, text)])
        self._decode(prompt, torch.Generator().manual_seed(0), min(WARM_UP_TOKENS, self.settings.max_new_token))

    def answer(self, question: Question) -> Answered:
        """Answer all turns of a question, ``num_choices`` times.

        A turn whose prompt the model cannot answer is an empty text with the reason beside it, and so are those behind
        it, which go on from it: such a question is finished, too, for it would fail every time.

        Raises:
            InputError: whatever is not the prompt's fault, as logits with NaN, with the question's id.
        """
        choices, infos = [], []
        with _naming(question):
            for index in range(self.settings.num_choices):
                choice, info = self._choice(question, index)
                choices.append(choice)
                about: Record = {"question_id": question.question_id, "choice_index": index}
                if question.category is not None:
                    about["category"] = question.category
                infos.append(about | info)
        answer = {
            "question_id": question.question_id,
            "answer_id": shortuuid.uuid(),
            "model_id": self.model_id,
            "choices": choices,
            "tstamp": time.time(),
        }
        if self.settings.layout == SPEC_BENCH:
            answer = as_spec_bench(answer, infos, question.category)
        accept_lengths = [length for info in infos for turn in info["accept_length"] for length in turn]
        return Answered(
            answer,
            infos,
            new_tokens=sum(sum(choice["new_tokens"]) for choice in choices),
            seconds=sum(sum(choice["wall_time"]) for choice in choices),
            rounds=len(accept_lengths),
            accepted=sum(accept_lengths),
        )

    def _choice(self, question: Question, index: int) -> tuple[Record, Record]:
        messages = self._system()
        turns: list[dict[str, Any]] = []
        reasons: list[str | None] = []
        if self.drafter is not None and not self.settings.keep_context:
            # What is drafted, and so the text of a seed, depends on no other question.
            self.model.offers[self.drafter].drafter.forget()
        for turn, text in enumerate(question.turns):
            if any(reasons):
                turns.append(_no_answer())
                reasons.append("the turn before it could not be answered")
                continue
            messages.append(self._user(turn, text))
            try:
                turns.append(self._turn(messages, turn_seed(self.settings.seed, question.question_id, index, turn)))
                reasons.append(None)
            except PromptError as error:
                turns.append(_no_answer())
                reasons.append(" ".join(str(error).split()))
            messages.append({"role": "assistant", "content": turns[-1]["turns"]})
        choice: Record = {"index": index, **{key: [turn.pop(key) for turn in turns] for key in OF_A_CHOICE}}
        if any(reasons):
            choice[UNANSWERED] = reasons
        return choice, {key: [turn[key] for turn in turns] for key in turns[0]}

    def _turn(self, messages: list[dict[str, str]], seed: int) -> dict[str, Any]:
        """Answer the last message: what the answers and the info say of a turn, by their keys."""
        start = time.perf_counter()
        prompt = self._prompt(messages)
        tokenized = time.perf_counter()
        output_ids, new_token, idx, decoding = self._decode(
            prompt, torch.Generator().manual_seed(seed), self.settings.max_new_token
        )
        generated = time.perf_counter()
        new_ids = output_ids[0, prompt.shape[1] :].tolist()
        reply = before_stop(self.tokenizer.decode(new_ids, skip_special_tokens=True), self.settings.stop).strip()
        decoded = time.perf_counter()
        return {
            **{"turns": reply, "idxs": idx, "new_tokens": new_token, "wall_time": generated - tokenized},
            "tokenizer_time": tokenized - start,
            "tokenizer_decode_time": decoded - generated,
            "generate_time": generated - tokenized,
            **decoding,
            "token_ends": token_ends(self.tokenizer, new_ids, reply),
        }

    def _system(self) -> list[dict[str, str]]:
        system = self.settings.system_prompt
        return [{"role": "system", "content": system}] if system else []

    def _user(self, turn: int, text: str) -> dict[str, str]:
        return {"role": "user", "content": text if turn else user_turn(self.settings.few_shot, text)}

    def _prompt(self, messages: list[dict[str, str]]) -> Tensor:
        return chat_ids(self.tokenizer, messages, self.settings.chat_template_kwargs).to(self.model.device)

    def _decode(
        self, prompt: Tensor, generator: torch.Generator, max_new_tokens: int
    ) -> tuple[Tensor, int, int, DecodingInfo]:
        settings = self.settings
        common: dict[str, Any] = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": settings.min_p,
            "repetition_penalty": settings.repetition_penalty,
            "stop": settings.stop,
            "max_new_tokens": max_new_tokens,
            "max_length": prompt.shape[1] + max_new_tokens,
            "generator": generator,
            "log": True,
            # All of it is text, also a token that pads elsewhere.
            "attention_mask": torch.ones_like(prompt),
        }
        if settings.drafting is None:
            logged = self.model.naivegenerate(prompt, **common)
        else:
            common |= {"verifier": settings.drafting.verifier, "tree": self.tree, "drafter": self.drafter}
            logged = self.model.eagenerate(prompt, **common)
        return cast("tuple[Tensor, int, int, DecodingInfo]", logged)


def _no_answer() -> dict[str, Any]:
    """What the files say of a turn that was not answered: no text, no token, no round."""
    times = dict.fromkeys(("wall_time", "tokenizer_time", "tokenizer_decode_time", "generate_time"), 0.0)
    return {"turns": "", "idxs": -1, "new_tokens": 0, **times, **no_rounds(0.0), "token_ends": []}


@contextlib.contextmanager
def _naming(question: Question) -> Iterator[None]:
    """Say which question an error is about."""
    try:
        yield
    except PromptError:
        raise
    except InputError as error:
        raise InputError(f"question {question.question_id}: {error}") from error


def turn_seed(seed: int, question_id: int | str, choice: int, turn: int) -> int:
    """The seed of one turn: the same whatever was answered before it, in this run or an interrupted one."""
    digest = hashlib.sha256(f"{seed}/{question_id}/{choice}/{turn}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
