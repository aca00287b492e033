"""Reading conversations of every format that prompts come in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eagle.data.conversations import read_conversations
from eagle.errors import InputError

SHAREGPT_RECORD = {
    "conversations": [
        {"from": "human", "value": " Hello "},
        {"from": "gpt", "value": "Hi"},
        {"from": "human", "value": "Bye"},
    ]
}


HALF = "\\ud83d"
"""Half of a surrogate pair, as JSON escapes it."""


def written(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_every_kind_of_line_is_read(tmp_path: Path) -> None:
    lines = [
        {"prompt": "Hello\u2028there"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
        {"turns": ["Hello", "Bye"], "question_id": 1},
        SHAREGPT_RECORD,
        {"conversations": [{"from": "gpt", "value": "I go on"}, {"from": "human", "value": "Do"}]},
    ]
    # A line separator inside a text is no end of line.
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    read = read_conversations(written(tmp_path / "prompts.jsonl", text))
    assert [conversation.turns for conversation in read] == [
        ("Hello\u2028there",),
        ("Hello",),
        ("Hello", "Bye"),
        ("Hello", "Bye"),
    ]
    assert read[1].prompt() == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert read[3].prompt() == [{"role": "user", "content": "Hello"}]
    assert [conversation.answers for conversation in read] == [(), (), (), ("Hi",)]
    assert read[3].prompt(1) == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]


def test_a_json_array_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps([SHAREGPT_RECORD, {"conversations": []}, SHAREGPT_RECORD], indent=1)
    assert len(read_conversations(written(tmp_path / "prompts.json", text))) == 2
    assert "3 complete records, 2 of them begun by a human" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "holds no prompts"),
        ("[]", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt"', "line 2: not valid JSON"),
        ('{"prompt": "a"}\n{"text": "b"}', "line 2: must be a JSON object with one of prompt"),
        ('{"prompt": 7}', "line 1: 'prompt' must hold texts"),
        ('{"turns": "a"}', "line 1: 'turns' must be a list"),
        ('{"messages": ["a"]}', "line 1: a message must be a JSON object"),
        ("[1]", "record 1: must be a JSON object"),
        ('[{"prompt": "a"}, {"prompt"', "record 2: not valid JSON"),
    ],
)
def test_malformed_files_are_explained(text: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=where) as caught:
        read_conversations(written(tmp_path / "prompts.jsonl", text))
    assert "prompts.jsonl" in str(caught.value)


def test_a_file_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the prompts"):
        read_conversations(str(tmp_path / "none.jsonl"))


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        read_conversations("hf:owner/name")


def test_a_data_set_is_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    written(tmp_path / "test.jsonl", "".join(json.dumps({"question": f"Q {i}", "turns": ["T"]}) + "\n" for i in "ab"))
    source = f"hf:{tmp_path}:test"
    assert [conversation.turns for conversation in read_conversations(source)] == [("T",), ("T",)]
    assert [conversation.turns for conversation in read_conversations(f"{source}:question")] == [("Q a",), ("Q b",)]
    for wrong, reason in ((f"{source}:none", "no column 'none'"), (f"hf:{tmp_path}:none", "could not be read")):
        with pytest.raises(InputError, match=reason):
            read_conversations(wrong)


@pytest.mark.slow
@pytest.mark.network
def test_sharegpt_has_so_many_complete_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read_conversations(None)) > 10_000
    assert "ShareGPT: 17,671 complete records" in capsys.readouterr().err


def test_an_array_that_is_no_utf8_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_bytes(b"[" + b" " * 5000 + b'{"prompt": "caf\xe9"}]')
    with pytest.raises(InputError, match=r"cannot read the prompts .*prompts\.json"):
        read_conversations(str(file))


@pytest.mark.parametrize(
    "broken",
    [
        '{"prompt": "Hello HALF"}',
        '{"messages": [{"role": "system", "content": "HALF"}, {"role": "user", "content": "Hello"}]}',
        '{"turns": ["Hello", "HALF"]}',
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_prompts_that_are_no_valid_text_are_left_out_and_counted(
    broken: str, array: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = ['{"prompt": "A smile: \\ud83d\\ude00"}', broken.replace("HALF", HALF), '{"prompt": "Bye"}']
    file.write_text("[" + ",".join(lines) + "]" if array else "\n".join(lines))
    read = read_conversations(str(file))
    assert [conversation.turns for conversation in read] == [("A smile: \U0001f600",), ("Bye",)]
    place = "record 2" if array else "line 2"
    said = capsys.readouterr().err
    assert f"3 complete records, 2 of them begun by a human; 1 are no valid text, the first is {file}, {place}" in said


def test_a_file_without_any_valid_text_is_refused_by_its_first_line(tmp_path: Path) -> None:
    lines = [{"conversations": [{"from": "gpt", "value": "I go on"}]}, {"prompt": "\ud83d"}, {"prompt": "\udc00"}]
    file = written(tmp_path / "prompts.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=r"prompts.jsonl, line 2: the prompt is no valid text, nor is any other"):
        read_conversations(file)


@pytest.mark.parametrize(
    "text", ['{"prompt": "Hello"}\n{"prompt": "Bye"}\n', '[{"prompt": "Hello"}, {"prompt": "Bye"}]']
)
def test_a_mark_before_the_text_is_no_part_of_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(text, encoding="utf-8-sig")
    assert [conversation.turns for conversation in read_conversations(str(file))] == [("Hello",), ("Bye",)]


def test_what_is_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"prompt": "Hello"}\n' + "[" * 100_000):
        with pytest.raises(InputError, match="not valid JSON"):
            read_conversations(written(tmp_path / "p.jsonl", text))
