"""Answers on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eagle.errors import InputError
from eagle.program import run_program
from eagle.train.answers import Answer, read_answers, writing
from eagle.train.settings import StageSettings
from tests.processes import run_on_a_full_disk

SETTINGS: dict[str, Any] = {"base_model": "m", "seed": 0, "temperatures": [1.0, 0.0]}


def answer(number: int) -> Answer:
    return Answer(f"{number}@1", [1, 2], [number, 3], 1.0, True)


def write(folder: Path, *numbers: int, settings: dict[str, Any] = SETTINGS) -> set[str]:
    """Append answers; returns the keys that were there before."""
    with writing(folder, settings, shard_size=2) as writer:
        before = set(writer.keys)
        for number in numbers:
            writer.append(answer(number))
    return before


def test_shards_are_filled_in_order_across_runs(tmp_path: Path) -> None:
    assert write(tmp_path, 1, 2, 3) == set()
    assert write(tmp_path, 4, 5) == {"1@1", "2@1", "3@1"}
    assert read_answers(tmp_path) == [answer(number) for number in (1, 2, 3, 4, 5)]
    assert [len(shard.read_text().splitlines()) for shard in sorted(tmp_path.glob("*.jsonl"))] == [2, 2, 1]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    shard = tmp_path / "answers-00001.jsonl"
    shard.write_bytes(shard.read_bytes()[:-5])
    assert read_answers(tmp_path) == [answer(1), answer(2)]
    assert write(tmp_path, 3, 4) == {"1@1", "2@1"}
    assert read_answers(tmp_path) == [answer(number) for number in (1, 2, 3, 4)]


def test_other_settings_are_refused_by_name_and_value(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(InputError, match="begun with seed=0, this run has 7"):
        write(tmp_path, 2, settings=SETTINGS | {"seed": 7})
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml cannot be read"):
        write(tmp_path, 2)
    assert read_answers(tmp_path) == [answer(1)]


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with writing(tmp_path, SETTINGS, shard_size=2), pytest.raises(InputError, match="another run"):
        write(tmp_path, 1)


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to"):
        write(tmp_path / "file" / "answers", 1)


def write_three(folder: Path) -> int:
    return run_program(lambda argv: write(folder, 1, 2, 3) and None, [])


def test_a_full_disk_leaves_whole_shards(tmp_path: Path) -> None:
    status, errors = run_on_a_full_disk(100, write_three, tmp_path)
    assert status == 2, errors
    assert errors.startswith("error: cannot write to")
    assert "1 answers are saved" in errors
    assert (tmp_path / "answers-00000.jsonl").read_bytes().endswith(b"\n")
    assert read_answers(tmp_path) == [answer(1)]
    assert write(tmp_path, 2, 3) == {"1@1"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "x"}, "'answer' must be a list of token ids"),
        ({"answer": [1.5]}, "'answer' must be a list"),
        ({"prompt": []}, "'prompt' is empty"),
        ({"prompt": [-1]}, "'prompt' must be a list"),
        ({"finished": 1}, "'finished' must be true or false"),
        ({"key": 3}, "'key' must be a text"),
        ({"more": 3}, "unexpected keyword"),
    ],
)
def test_malformed_lines_are_named(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    lines = [asdict(answer(1)), asdict(answer(2)) | change]
    (tmp_path / "answers-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=rf"answers-00000\.jsonl, line 2: no answer \(.*{reason}"):
        read_answers(tmp_path)


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no answers; make some with"):
        read_answers(tmp_path / "none")
    empty = asdict(answer(1)) | {"answer": []}
    (tmp_path / "answers-00000.jsonl").write_text(json.dumps(empty) + "\n")
    with pytest.raises(InputError, match="all 1 answers are empty"):
        read_answers(tmp_path)
    (tmp_path / "answers-00000.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="line 1: no answer"):
        read_answers(tmp_path)


def test_the_folder_is_named_after_the_base_model() -> None:
    assert StageSettings().folder == Path("training/smollm2-135m")
    assert StageSettings("meta-llama/Llama-3.1-8B-Instruct").folder == Path("training/Llama-3.1-8B-Instruct")
    assert StageSettings("y", Path("x")).folder == Path("x")
