"""Answers that conversations hold already, as something more to train on.

They are not the target's own words, but the target says what it thinks of each next token of them, which costs one
reading instead of an answer drawn token by token: many times as much text in the same time. A training learns from them
beside the target's own answers (``--also``), by which alone it is judged.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from eagle import assets
from eagle.chat_template import OPTION_HELP, chat_text, require_chat_template, template_arguments
from eagle.data.conversations import Conversation, Message, read_conversations
from eagle.errors import InputError
from eagle.identity import BASE, Identity, base_identity
from eagle.target.base import load_tokenizer
from eagle.train.answers import ANSWERS, Answer, writing
from eagle.train.prompts import Excluded, benchmark_texts
from eagle.train.settings import StageSettings

GIVEN = "given"


@dataclass(frozen=True)
class GivenSettings(StageSettings):
    """What ``take_given`` does; the metadata are the help texts of the program."""

    prompts: str | None = field(
        default=None, metadata={"help": "conversations with answers, see generate; default: ShareGPT"}
    )
    exclude: tuple[str, ...] = field(
        default=(), metadata={"help": "conversations that overlap with these, beside MT-Bench, are left out"}
    )
    tokens: int | None = field(default=None, metadata={"help": "begin no answer after so many tokens of answers"})
    max_new_tokens: int = field(default=512, metadata={"help": "of an answer; the rest is cut off"})
    max_prompt_tokens: int = field(default=512, metadata={"help": "longer prompts are left out"})
    chat_template_kwargs: str | None = field(default=None, metadata={"help": OPTION_HELP})
    seed: int = field(default=0, metadata={"help": "of the order"})
    shard_size: int = field(default=1000, metadata={"help": "answers in a file"})

    def __post_init__(self) -> None:
        for name in ("tokens", "max_new_tokens", "max_prompt_tokens", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
        template_arguments(self.chat_template_kwargs)

    def shaping(self, base: Identity) -> dict[str, Any]:
        """What decides the answers; the rest only decides how many of them are taken."""
        return {
            BASE: base,
            "prompts": self.prompts or "ShareGPT",
            "given": True,
            "exclude": list(self.exclude),
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
            "chat_template_kwargs": template_arguments(self.chat_template_kwargs),
            "seed": self.seed,
        }


def take_given(settings: GivenSettings) -> None:
    """Take answers, each with the chat up to it as its prompt, until there are enough; what is there already is kept.

    Raises:
        InputError: anything about the settings, the conversations, the tokenizer or the folder that does not fit.
    """
    path = assets.resolve_base(settings.base_model_path)
    arguments = template_arguments(settings.chat_template_kwargs)
    tokenizer = load_tokenizer(path)
    require_chat_template(tokenizer, path, arguments)
    folder = settings.folder / ANSWERS
    with writing(folder, settings.shaping(base_identity(path)), settings.shard_size) as writer:
        excluded = Excluded(benchmark_texts(settings.exclude))
        conversations = read_conversations(settings.prompts)
        random.Random(settings.seed).shuffle(conversations)  # noqa: S311  # a reproducible order, not a secret
        left_out = 0
        with tqdm(total=settings.tokens, initial=writer.tokens, unit="token", dynamic_ncols=True) as bar:
            for prompt, said in exchanges(conversations):
                if settings.tokens is not None and writer.tokens >= settings.tokens:
                    break
                key = hashlib.sha256(json.dumps([prompt, said]).encode()).hexdigest()[:16]
                if key in writer.keys:
                    continue
                ids = tokenizer(chat_text(tokenizer, prompt, arguments), add_special_tokens=False).input_ids
                overlap = any(text in excluded for text in (*(message["content"] for message in prompt), said))
                if overlap or len(ids) > settings.max_prompt_tokens:
                    left_out += 1
                    continue
                answer = [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                kept = answer[: settings.max_new_tokens]
                writer.append(Answer(key, ids, kept, None, len(kept) == len(answer)))
                bar.update(len(kept))
    if not writer.keys:
        raise InputError(f"{settings.prompts or 'ShareGPT'} holds no answers to take")
    assets.say(
        f"{folder}: {len(writer.keys):,} answers of {writer.tokens:,} tokens; {left_out:,} left out, whose prompts "
        f"have more than {settings.max_prompt_tokens} tokens or which overlap with benchmark questions"
    )


def exchanges(conversations: Iterable[Conversation]) -> Iterator[tuple[list[Message], str]]:
    """All answers that conversations hold, each with the chat up to it."""
    for conversation in conversations:
        for turn, answer in enumerate(conversation.answers):
            yield conversation.prompt(turn), answer
