"""Two answers to one question, as two programs leave them: nothing is lost, and everybody takes the same one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.evaluation import accuracy, equal, speed, stats
from eagle.evaluation.answering.records import RunFiles
from eagle.evaluation.reading.runs import read_run
from eagle.identity import BASE
from tests.evaluation.runfiles import Turn, answer_line, info_line, record

FIRST = {1: [Turn([(2, 4)], 4.0, "It is 1.")], 2: [Turn([(1, 3)], 3.0, "It is 1.")]}
SECOND = {1: [Turn([(0, 4), (1, 4)], 8.0, "It is 2.")], 2: [Turn([(2, 3)], 5.0, "It is 2.")]}
SETTINGS = {BASE: {"config.json": "0"}, "temperature": 1.0}


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Of question 1 both, the info in the other order than the answers; of question 2 both, and of 3 one."""
    file = tmp_path / "m-temperature-1.0_ea.jsonl"
    third = [Turn([(3, 4)], 2.0, "It is 3.")]
    order = [(1, FIRST[1]), (1, SECOND[1]), (2, FIRST[2]), (2, SECOND[2]), (3, third)]
    file.write_text("".join(answer_line(question, [turns]) for question, turns in order))
    order[0], order[1] = order[1], order[0]
    RunFiles.beside(file).info.write_text("".join(info_line(question, turns) for question, turns in order))
    return record(file, SETTINGS)


def test_the_last_answer_is_read_with_its_own_info_and_said_to_be(
    answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_run(answers)
    said = capsys.readouterr().err
    assert "2 questions have several answers (1, 2); the last of each is used" in said
    assert run.questions == (1, 2, 3)
    assert run.doubled == (1, 2)
    assert run.accept_length.tolist() == [0, 1, 2, 3]
    assert run.wall_time.tolist() == run.generate_time.tolist() == [8.0, 5.0, 2.0]
    assert stats.main([str(answers)]) == 0
    assert (
        "Questions that have several answers, of which the last is used: EAGLE-3 2 (1, 2)." in capsys.readouterr().out
    )


def test_an_answer_without_its_info_does_not_push_out_one_that_is_whole(
    answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = RunFiles.beside(answers).info
    lines = info.read_text().splitlines(keepends=True)
    # Of the second answer to question 1.
    info.write_text("".join(lines[1:]))
    assert read_run(answers).accept_length.tolist() == [2, 2, 3]
    assert "1 answers without info; left out" in capsys.readouterr().err


def test_resuming_keeps_both_and_answers_neither_again(answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = RunFiles.beside(answers)
    before = answers.read_bytes(), files.info.read_bytes()
    assert files.begin(SETTINGS, {}, 1) == {1, 2, 3}
    files.sort([1, 2, 3])
    assert (answers.read_bytes(), files.info.read_bytes()) == before
    said = capsys.readouterr().err
    assert "2 questions have several answers (1, 2)" in said
    assert "all are kept, and none is answered again" in said
    # A question that is only in one of the files is not finished, with or without doubles.
    files.info.write_text("".join(files.info.read_text().splitlines(keepends=True)[:4]))
    assert files.begin(SETTINGS, {}, 1) == {1, 2}
    assert [json.loads(line)["question_id"] for line in answers.read_text().splitlines()] == [1, 1, 2, 2]


def test_every_program_takes_the_same_one(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = tmp_path / "last.jsonl"
    last.write_text("".join(answers.read_text().splitlines(keepends=True)[place] for place in (1, 3, 4)))
    assert equal.main([str(answers), str(last)]) == 0
    assert "2 questions have several answers (1, 2)" in capsys.readouterr().err
    assert speed.main([str(answers), str(last)]) == 0
    assert "1.00x" in capsys.readouterr().out
    questions = tmp_path / "question.jsonl"
    lines = [
        {"question_id": number, "turns": ["?"], "reference": [f"#### {min(number + 1, 2)}"]} for number in (1, 2, 3)
    ]
    questions.write_text("\n".join(map(json.dumps, lines)))
    assert accuracy.main([str(answers), "--question-file", str(questions)]) == 0
    assert "66.7" in capsys.readouterr().out
