"""What a chat template is given, which one it is, and what it makes of what it does not take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eagle.chat_template import chat_ids, chat_text, require_chat_template, template_arguments
from eagle.errors import InputError, TemplateRefusalError
from tests.tiny import CHAT_TEMPLATE, make_chat_pair

HELLO = [{"role": "user", "content": "Hello"}]
THINKING = CHAT_TEMPLATE + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
NAMED = {"tool_use": "tools {{ messages[0]['content'] }}", "rag": "documents {{ messages[0]['content'] }}"}


def tokenizer_of(folder: Path, template: str | dict[str, str]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(make_chat_pair(folder, template)[0])


def test_arguments_reach_the_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, THINKING)
    arguments = template_arguments('{"enable_thinking": false}')
    require_chat_template(tokenizer, "base", arguments)
    assert chat_text(tokenizer, HELLO, arguments) == chat_text(tokenizer, HELLO) + "<think></think>"
    assert tokenizer.decode(chat_ids(tokenizer, HELLO, arguments)[0]) == chat_text(tokenizer, HELLO, arguments)


@pytest.mark.parametrize("text", [None, "{}", " {} "])
def test_nothing_is_nothing(text: str | None) -> None:
    assert template_arguments(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be a JSON object"),
        ("enable_thinking=False", "must be a JSON object"),
        ("{'enable_thinking': False}", "must be a JSON object"),
        ('{"budget": NaN}', "NaN is no JSON"),
        ("[" * 100_000, "must be a JSON object"),
        ("[1]", r"must be a JSON object .*, not \[1\]"),
        ("false", "must be a JSON object"),
        ('{"tokenize": true}', "'tokenize' is not for the template to decide"),
        ('{"add_generation_prompt": false}', "'add_generation_prompt' is not"),
        ('{"conversation": []}', "'conversation' is not"),
        ('{"messages": []}', "'messages' is not"),
        ('{"continue_final_message": true}', "'continue_final_message' is not"),
        ('{"return_tensors": "np"}', "'return_tensors' is not"),
    ],
)
def test_what_is_not_for_the_template_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=f"^--chat-template-kwargs.*{why}") as refused:
        template_arguments(text)
    assert "\n" not in str(refused.value)


def test_an_argument_that_the_template_does_not_read_is_refused(tmp_path: Path) -> None:
    """It would change nothing, and nobody would know."""
    tokenizer = tokenizer_of(tmp_path, THINKING)
    with pytest.raises(InputError, match="the chat template of base does not read 'enable_thinkin'"):
        require_chat_template(tokenizer, "base", {"enable_thinkin": False})


@pytest.mark.parametrize("in_the_configuration", [False, True])
def test_one_of_several_templates_is_chosen_by_name(tmp_path: Path, in_the_configuration: bool) -> None:
    base = make_chat_pair(tmp_path, None if in_the_configuration else NAMED)[0]
    if in_the_configuration:
        file = base / "tokenizer_config.json"
        templates = [{"name": name, "template": template} for name, template in NAMED.items()]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": templates}))
    else:
        assert (base / "additional_chat_templates" / "rag.jinja").is_file()
    tokenizer = AutoTokenizer.from_pretrained(base)
    without = (
        r"^the tokenizer of base has several chat templates \(rag, tool_use\) and no default; choose one: "
        r"--chat-template-kwargs '\{\"chat_template\": \"rag\"\}'$"
    )
    with pytest.raises(InputError, match=without):
        require_chat_template(tokenizer, "base")
    for wrong in ("tools", ["rag"], 3):
        with pytest.raises(InputError, match=r"no chat template .*; it has rag, tool_use$"):
            require_chat_template(tokenizer, "base", {"chat_template": wrong})
    arguments = template_arguments('{"chat_template": "tool_use"}')
    require_chat_template(tokenizer, "base", arguments)
    assert chat_text(tokenizer, HELLO, arguments) == "tools Hello"


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, NAMED | {"default": "plain {{ messages[0]['content'] }}"})
    require_chat_template(tokenizer, "base")
    assert chat_text(tokenizer, HELLO) == "plain Hello"
    assert chat_text(tokenizer, HELLO, {"chat_template": "rag"}) == "documents Hello"


def test_a_name_where_there_is_one_template_is_not_taken_for_a_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has one chat template, without a name"):
        require_chat_template(tokenizer_of(tmp_path, CHAT_TEMPLATE), "base", {"chat_template": "tool_use"})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Only\n two messages') }}", "Only two messages"),
        ("{{ messages[7]['content'] }}", "has no element 7"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError division by zero"),
        ("{{ '%(name)s' % messages[0] }}", "KeyError 'name'"),
        ("{{ messages[0]['content']", "unexpected end of template"),
    ],
)
def test_whatever_happens_in_a_template_is_one_line(tmp_path: Path, template: str, reason: str) -> None:
    tokenizer = tokenizer_of(tmp_path, template)
    for put in (lambda: require_chat_template(tokenizer, "base"), lambda: chat_ids(tokenizer, HELLO)):
        with pytest.raises(TemplateRefusalError, match="chat template refuses this conversation: ") as refused:
            put()
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)


def test_arguments_of_a_wrong_type_are_one_line(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, CHAT_TEMPLATE + "{% for tool in tools %}{{ tool['name'] }}{% endfor %}")
    with pytest.raises(InputError, match="refuses this conversation: TypeError"):
        require_chat_template(tokenizer, "base", {"tools": 5})
    require_chat_template(tokenizer, "base", {"tools": [{"name": "clock"}]})


def test_a_system_prompt_that_the_template_does_not_take_is_said_at_once(tmp_path: Path) -> None:
    """As Gemma 2's."""
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = tokenizer_of(tmp_path, refusing + CHAT_TEMPLATE)
    require_chat_template(tokenizer, "base")
    with pytest.raises(InputError, match=r"^--system-prompt: .* refuses this conversation: System role not supported$"):
        require_chat_template(tokenizer, "base", system_prompt="Be short.")


@pytest.mark.parametrize("half", [0xD83D, 0xDCFF])
def test_half_a_character_is_one_line(tmp_path: Path, half: int) -> None:
    tokenizer = tokenizer_of(tmp_path, CHAT_TEMPLATE)
    with pytest.raises(InputError, match=rf"holds U\+{half:X}, which is only half a character"):
        chat_ids(tokenizer, [{"role": "user", "content": f"Hi {chr(half)}"}])
    with pytest.raises(InputError, match=r"^--system-prompt: the conversation holds"):
        require_chat_template(tokenizer, "base", system_prompt=f"Be {chr(half)}")
