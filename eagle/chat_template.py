"""Conversations as a model reads them: through the chat template of its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eagle.errors import InputError, PromptError

Message = dict[str, str]
"""``role`` (``system``, ``user`` or ``assistant``) and ``content``."""


def require_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Refuse a tokenizer that cannot hold a conversation.

    Args:
        tokenizer: of the model.
        path: where it is from.

    Raises:
        InputError: it has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {path} has no chat template, so it cannot hold a conversation; use a chat model, or add "
            "chat_template.jinja to its folder"
        )


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Tensor:
    """(1, n) int64 on the host: a conversation up to where its answer begins.

    Raises:
        PromptError: the chat template refuses it.
    """
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise PromptError(f"the model's chat template refuses this conversation: {error}") from error
    ids: Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return ids
