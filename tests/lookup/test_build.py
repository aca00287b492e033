"""Databases of look-up from the command: sources, going on, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from eagle.drafters.lookup.corpus import open_corpus
from eagle.drafters.vocabulary import vocabulary_sha256
from eagle.lookup import __main__ as program
from eagle.lookup import build as building
from eagle.lookup.sources import pieces
from eagle.target.base import load_tokenizer
from eagle.train.answers import Answer
from tests.tiny import make_chat_pair
from tests.train.fitting import write_answers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_pair(tmp_path_factory.mktemp("pair"))[0]


def write(file: Path, *records: object) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def test_every_text_of_a_record_and_every_paragraph_is_taken(tmp_path: Path) -> None:
    record = {
        "id": "x1",
        "conversations": [{"from": "human", "value": "How so?"}, {"from": "gpt", "value": "Like so."}],
    }
    lines = write(tmp_path / "a.jsonl", record, {"text": "one two", "n": 3, "tags": ["red", "deep blue"]})
    assert list(pieces(lines)) == ["How so?", "Like so.", "one two", "deep blue"]
    (tmp_path / "b.json").write_text(json.dumps([{"answer": "four words are here"}]))
    assert list(pieces(str(tmp_path / "b.json"))) == ["four words are here"]
    (tmp_path / "c.txt").write_text("first line\nsecond\n\n\nthird\n")
    assert list(pieces(str(tmp_path / "c.txt"))) == ["first line\nsecond\n", "third\n"]
    write_answers(tmp_path / "answers", [Answer("1@1", [1, 2], [3, 4, 5], 1.0, True)])
    assert list(pieces(str(tmp_path / "answers"))) == list(pieces(str(tmp_path))) == [[3, 4, 5]]


def test_a_database_is_built_and_found_in(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", {"text": "the cat sat"}, {"text": "the cat ran"})
    file = tmp_path / "dbs" / "l"
    assert program.main(["build", str(file), source, "--base-model-path", str(base)]) == 0
    assert capsys.readouterr().out.startswith(f"{file}: 2 texts, 22 tokens")
    tokenizer = load_tokenizer(str(base))
    longest = next(
        iter(
            open_corpus(file, vocabulary_sha256(tokenizer.get_vocab()), (1.0,)).matches(tokenizer("the cat ").input_ids)
        )
    )
    assert longest.length == 8
    assert sorted(tokenizer.convert_ids_to_tokens(list(longest.counts))) == ["r", "s"]
    assert [each.name for each in file.parent.iterdir()] == ["l"]
    assert program.main(["build", str(file), source, "--base-model-path", str(base), "--tokens", "5"]) == 0
    assert "1 texts, 11 tokens" in capsys.readouterr().out


def test_what_was_tokenized_is_not_tokenized_again(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.jsonl", *({"text": f"this is text {number}"} for number in range(10)))
    asked = ["build", str(tmp_path / "db"), source, "--base-model-path", str(base)]
    monkeypatch.setattr(building, "AT_ONCE", 4)
    tokenized, seen = building._tokenized, []

    def counted(texts, tokenizer):
        seen.append(len(texts))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return tokenized(texts, tokenizer)

    monkeypatch.setattr(building, "_tokenized", counted)
    assert program.main(asked) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert program.main(asked) == 0
    assert seen == [4, 4, 2, 2]
    resumed = load_file(tmp_path / "db")
    assert program.main(asked) == 0
    again = load_file(tmp_path / "db")
    assert all((again[name] == array).all() for name, array in resumed.items())
    # Of another source nothing is kept.
    seen[:] = [0]
    assert program.main(asked) == 130
    write(tmp_path / "a.jsonl", {"text": "another text"})
    assert program.main(asked) == 0
    assert "1 texts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("absent.txt", None, "cannot read"),
        ("absent.jsonl", None, "cannot read"),
        ("empty.txt", "\n\n", "there is no text"),
        ("words.jsonl", '{"text": "word"}\n', "there is no text"),
        ("broken.jsonl", "{\n", "line 1: not valid JSON"),
    ],
)
def test_sources_that_do_not_serve_are_one_line(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    asked = ["build", str(tmp_path / "db"), str(tmp_path / name), "--base-model-path", str(base)]
    assert program.main(asked) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert complaint in error
    assert not (tmp_path / "db").exists()


def test_a_number_of_tokens_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["build", "db", "a.txt", "--tokens", "0"]) == 2
    assert "--tokens must be 1 or more" in capsys.readouterr().err
