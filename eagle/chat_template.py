"""Conversations as a model reads them: through the chat template of its own tokenizer."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eagle.errors import InputError, TemplateRefusalError

Message = dict[str, str]
"""``role`` (``system``, ``user`` or ``assistant``) and ``content``."""
TemplateArguments = Mapping[str, Any]
"""What a chat template is given beside the conversation, by name."""

OPTION = "--chat-template-kwargs"
OPTION_HELP = (
    'JSON object for the chat template, such as \'{"enable_thinking": false}\'; \'{"chat_template": "tool_use"}\' '
    "chooses one of several"
)
NAMED = "chat_template"
# What the call itself sets, or what would make something other than the text of the conversation out of it.
NOT_FOR_THE_TEMPLATE = frozenset(
    {
        "conversation",
        "conversations",
        "messages",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


def add_template_argument(parse: argparse._ActionsContainer) -> None:
    """The argument whose value ``template_arguments`` reads."""
    parse.add_argument(OPTION, metavar="JSON", help=OPTION_HELP)


def template_arguments(text: str | None) -> dict[str, Any] | None:
    """What a chat template is given beside the conversation.

    Args:
        text: a JSON object; None is nothing.

    Returns:
        None where there is nothing.

    Raises:
        InputError: no JSON object, or one that names what is not for the template.
    """
    if text is None:
        return None
    try:
        given = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{OPTION} must be a JSON object like {{"enable_thinking": false}}: {error}') from None
    if not isinstance(given, dict):
        raise InputError(f'{OPTION} must be a JSON object like {{"enable_thinking": false}}, not {text}')
    for name in given:
        if name in NOT_FOR_THE_TEMPLATE:
            raise InputError(f"{OPTION}: {name!r} is not for the template to decide; leave it out")
    return given or None


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def require_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    arguments: TemplateArguments | None = None,
    system_prompt: str | None = None,
) -> None:
    """Refuse a tokenizer that cannot hold a conversation, or not this kind of one.

    Args:
        tokenizer: of the model.
        path: where it is from.
        arguments: for the template, see ``template_arguments``.
        system_prompt: that conversations will begin with.

    Raises:
        InputError: it has no chat template, or several and none of them is chosen; the template does not read an
            argument, or does not take such a conversation.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {path} has no chat template, so it cannot hold a conversation; use a chat model, or add "
            "chat_template.jinja to its folder"
        )
    arguments = arguments or {}
    template = _chosen(tokenizer, path, arguments)
    for name in arguments.keys() - {NAMED}:
        # A template ignores what it does not know, so that a mistyped name would change nothing, silently.
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(f"{OPTION}: the chat template of {path} does not read {name!r}; leave it out")
    message = Message(role="user", content="Hello")
    chat_text(tokenizer, [message], arguments)
    if system_prompt:
        try:
            chat_text(tokenizer, [Message(role="system", content=system_prompt), message], arguments)
        except InputError as error:
            raise InputError(f"--system-prompt: {error}") from error


def _chosen(tokenizer: PreTrainedTokenizerBase, path: str, arguments: TemplateArguments) -> str:
    """The text of the template that conversations go through.

    Raises:
        InputError: there is none of this name, or there are several and none is the default.
    """
    name, templates = arguments.get(NAMED), tokenizer.chat_template
    if not isinstance(templates, dict):
        if name is not None:
            raise InputError(f"{OPTION}: the tokenizer of {path} has one chat template, without a name; leave it out")
        return str(templates)
    there = ", ".join(sorted(templates))
    if name is not None and not (isinstance(name, str) and name in templates):
        raise InputError(f"{OPTION}: the tokenizer of {path} has no chat template {name!r}; it has {there}")
    try:
        return str(tokenizer.get_chat_template(name, arguments.get("tools")))
    except ValueError as error:
        raise InputError(
            f"the tokenizer of {path} has several chat templates ({there}) and no default; choose one: "
            f"{OPTION} '{json.dumps({NAMED: min(templates)})}'"
        ) from error


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], arguments: TemplateArguments | None = None
) -> str:
    """A conversation as text, up to where its answer begins.

    Args:
        tokenizer: of the model, which ``require_chat_template`` accepted.
        messages: the conversation.
        arguments: for the template, see ``template_arguments``.

    Raises:
        TemplateRefusalError: the chat template does not take it.
        InputError: it holds what is no text.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **(arguments or {})
        )
    except Exception as error:  # whatever happens within a template
        raise TemplateRefusalError(f"the model's chat template refuses this conversation: {_reason(error)}") from error
    lone = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if lone is not None:
        raise InputError(f"the conversation holds U+{ord(lone):X}, which is only half a character; take it out")
    return str(text)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], arguments: TemplateArguments | None = None
) -> Tensor:
    """(1, n) int64 on the host: a conversation up to where its answer begins.

    Args:
        tokenizer: as for ``chat_text``, like all that follow.
        messages: the conversation.
        arguments: for the template.

    Raises:
        InputError: as ``chat_text``.
    """
    text = chat_text(tokenizer, messages, arguments)
    ids: Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return ids


def _reason(error: Exception) -> str:
    """In one line; what Python's own errors say is told with their type, since it may be no more than a name."""
    said = " ".join(str(error).split())
    return said if said and isinstance(error, TemplateError) else f"{type(error).__name__} {said}".strip()
