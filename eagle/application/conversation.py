"""Talking to a pair: the settings of a chat, and the model that answers its messages."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eagle import assets
from eagle.application.streaming import Update, stream
from eagle.chat_template import (
    Message,
    TemplateArguments,
    add_template_argument,
    chat_ids,
    require_chat_template,
    template_arguments,
)
from eagle.clock import Clock
from eagle.decoding.method import HEAD, SORTED, VERIFIERS, Method
from eagle.decoding.prompt_cache import DEFAULT_BYTES, PromptCache
from eagle.decoding.sampling_params import SamplingParams
from eagle.decoding.stored_trees import form_of
from eagle.errors import ContextFullError, InputError, TemplateRefusalError
from eagle.identity import readable_name
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, add_pair_arguments, load, pair_of
from eagle.tree.shape import TREES, TreeShape
from eagle.tree.warping import Warper


@dataclass(frozen=True)
class ChatSettings:
    """How a message is answered.

    Attributes:
        hsd: hierarchical verification of hybrid trees; false: EAGLE-3.
        temperature: 0 is greedy.
        top_p: nucleus mass; 0 and 1 are off.
        top_k: most likely tokens kept; 0 is off.
        max_new_tokens: new tokens of an answer.
        tree: kind of tree to use instead, one of ``TREES``.
        verifier: name of the rule to use instead.

    Raises:
        InputError: a value out of its range, an unknown name, or a rule that does not go with the tree.
    """

    hsd: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    tree: str | None = None
    verifier: str | None = None

    def __post_init__(self) -> None:
        Warper(self.temperature, self.top_p, self.top_k)
        if self.max_new_tokens < 1:
            raise InputError(f"new tokens must be 1 or more, not {self.max_new_tokens}")
        Method.named(self.hsd, self.verifier, self.tree)

    @property
    def method(self) -> Method:
        """Kind of tree and verification rule."""
        return Method.named(self.hsd, self.verifier, self.tree)

    @property
    def method_name(self) -> str:
        """For people: ``HSD``, ``EAGLE-3``, or the tree and the rule of another combination."""
        usual = {Method.named(hsd=True): "HSD", Method.named(hsd=False): "EAGLE-3"}
        return usual.get(self.method, f"{self.method.tree} tree, {self.method.verifier}")


class ChatModel:
    """A pair that answers conversations.

    Args:
        model: the pair.
        system_prompt: put before every conversation; None leaves that to the chat template.
        seed: of every answer; None draws each time anew.
        name: of the base model, for people.
        template: what the chat template is given beside the conversation.

    Raises:
        InputError: see ``require_chat_template``.
    """

    def __init__(
        self,
        model: EaModel,
        system_prompt: str | None = None,
        seed: int | None = None,
        name: str = "",
        template: TemplateArguments | None = None,
    ) -> None:
        self.model, self.seed, self.template = model, seed, template
        self.system_prompt, self.name = system_prompt, name or readable_name(model.base_model_path)
        self.tokenizer = model.get_tokenizer()
        require_chat_template(self.tokenizer, model.base_model_path, template, system_prompt)

    @classmethod
    def load(
        cls,
        choice: ModelChoice,
        system_prompt: str | None = None,
        seed: int | None = None,
        template: TemplateArguments | None = None,
    ) -> ChatModel:
        """Load a pair, with the trees that are stored for it.

        Raises:
            InputError: see ``eagle.model.loading.load`` and ``require_chat_template``.
        """
        model = load(choice)
        model.prompts = PromptCache(DEFAULT_BYTES)
        # The temperature is each message's own.
        if choice.drafted_by in (HEAD, SORTED):
            trees = choice.stored_trees(form_of(model.target))
            model.offers[choice.drafted_by] = replace(model.offers[choice.drafted_by], trees=trees)
        name = readable_name(choice.base_model_path or assets.DEFAULT_PAIR)
        return cls(model, system_prompt, seed, name, template)

    def answer(
        self, messages: Sequence[Message], settings: ChatSettings, autoregressive: bool = False
    ) -> Generator[Update, None, None]:
        """Answer the last message of a conversation, round by round; closing the iterator ends the answer.

        Args:
            messages: user and assistant in turn.
            settings: how.
            autoregressive: decode without drafting, whatever the settings' method.

        Raises:
            InputError: with the first item, a conversation that does not fit the model or its chat template.
        """
        prompt = self.prompt(messages)
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        rounds = self.model.rounds(
            None if autoregressive else self.method(settings),
            prompt,
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_new_tokens=settings.max_new_tokens,
                max_length=prompt.shape[1] + settings.max_new_tokens,
                generator=generator,
            ),
            self.shape(settings),
        )
        yield from stream(rounds, self.tokenizer, Clock(self.model.device))

    def shape(self, settings: ChatSettings) -> TreeShape:
        """The trees that some settings mean."""
        return self.model.shape_for(self.method(settings).at(settings.temperature), settings.temperature)

    def method(self, settings: ChatSettings) -> Method:
        """The method that some settings mean, of the drafter that the model has."""
        return replace(settings.method, drafter=self.model.default)

    def prompt(self, messages: Sequence[Message]) -> Tensor:
        """(1, n) int64: a conversation as the model reads it, up to where its answer begins.

        Raises:
            InputError: the chat template refuses it.
        """
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return chat_ids(self.tokenizer, [*system, *messages], self.template).to(self.model.device)


def way_out(error: InputError, begun: bool, anew: str) -> str:
    """Why a message is not answered, and what to do where a conversation is the reason.

    Args:
        error: why.
        begun: whether anything was said before the message.
        anew: how a conversation is begun anew in this program.
    """
    if isinstance(error, ContextFullError):
        return f"{error}; send a shorter message{f', or {anew}' if begun else ''}"
    if isinstance(error, TemplateRefusalError) and begun:
        return f"{error}; {anew}"
    return str(error)


def add_chat_arguments(parse: argparse.ArgumentParser) -> None:
    """The arguments that name a pair and say how it answers."""
    add_pair_arguments(parse.add_argument_group("model"))
    default = ChatSettings()
    how = parse.add_argument_group("answers")
    how.add_argument(
        "--hsd",
        action=argparse.BooleanOptionalAction,
        default=default.hsd,
        help="hybrid trees, joint verification (lossless); --no-hsd: EAGLE-3",
    )
    how.add_argument("--verifier", help=f"ablation: another rule ({', '.join(VERIFIERS)})")
    how.add_argument("--tree", help=f"ablation: another kind of tree ({', '.join(TREES)})")
    how.add_argument("--temperature", type=float, default=default.temperature, help="0 is greedy")
    how.add_argument("--top_p", "--top-p", type=float, default=default.top_p, help="nucleus mass; 0 and 1 are off")
    how.add_argument("--sample-top-k", type=int, default=default.top_k, help="most likely tokens kept; 0 is off")
    how.add_argument("--max-new-token", type=int, default=default.max_new_tokens, help="new tokens of an answer")
    how.add_argument("--seed", type=int, help="of every answer, so that the same question has the same answer")
    how.add_argument("--system-prompt", help="system message of the conversation")
    add_template_argument(how)


def settings_of(args: argparse.Namespace) -> ChatSettings:
    """The settings that those arguments name.

    Raises:
        InputError: see ``ChatSettings``.
    """
    return ChatSettings(
        hsd=args.hsd,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.sample_top_k,
        max_new_tokens=args.max_new_token,
        tree=args.tree,
        verifier=args.verifier,
    )


def chat_model_of(args: argparse.Namespace) -> ChatModel:
    """Load what those arguments name.

    Raises:
        InputError: see ``template_arguments`` and ``ChatModel.load``.
    """
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise InputError(f"--seed must be 0 or more and below 2^63, not {args.seed}")
    template = template_arguments(args.chat_template_kwargs)
    return ChatModel.load(pair_of(args), args.system_prompt, args.seed, template=template)
