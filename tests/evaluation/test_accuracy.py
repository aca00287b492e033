"""Accuracy of written-down answers, and the final numbers of texts."""

from __future__ import annotations

import json
import os
import re
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from eagle.data.questions import Question
from eagle.errors import InputError
from eagle.evaluation import accuracy
from eagle.evaluation.accuracy import Accuracy, final_number, reference_number
from tests.evaluation import runfiles
from tests.evaluation.runfiles import Turn

PUBLISHED = Path(os.environ.get("EAGLE_PUBLISHED_RESULTS", Path(__file__).parents[3] / "shared/data/published_results"))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So there are 18 eggs.", "18"),
        ("3 + 4 = 7", "7"),
        ("She earns $1,234,567.50 in all.", "1234567.5"),
        ("It costs $18.", "18"),
        ("**Answer: $2.00**", "2"),
        ("\\boxed{42}", "42"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5", "-5"),
        ("that is \u22123 degrees", "-3"),
        ("10-4", "4"),
        ("x = (2)-4", "4"),
        ("one half is .5", "0.5"),
        ("the numbers 1, 2,3", "3"),
        ("in 2024,", "2024"),
        ("75% of them", "75"),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_text(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_a_reference_ends_with_its_number() -> None:
    assert reference_number("7+11 = <<7+11=18>>18\n#### 1,109") == 1109
    assert reference_number("#### -3\n") == -3
    assert reference_number("18") == 18
    assert reference_number("#### none") is None


def test_intervals_of_shares() -> None:
    # Wilson: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); at p = 1 that is n / (n + z^2) to 1.
    certain = Accuracy(questions=10, share=1.0, without_number=0).estimate
    assert certain.low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)
    assert certain.high == pytest.approx(1.0)
    even = Accuracy(questions=100, share=0.5, without_number=0).estimate
    assert even.high - 0.5 == pytest.approx(0.5 - even.low)
    assert 0.40 < even.low < 0.41


def write_run(folder: Path, texts: dict[int, list[str]], sha: str | None = None) -> Path:
    """A run of one turn a choice: 2 rounds of which 3 draft tokens are accepted, 6 new tokens, 2 seconds."""
    folder.mkdir(exist_ok=True)
    answers, infos = [], []
    for question_id, choices in texts.items():
        answers.append(
            {
                "question_id": question_id,
                "choices": [
                    {"index": index, "turns": [text], "idxs": [1], "new_tokens": [6], "wall_time": [2.0]}
                    for index, text in enumerate(choices)
                ],
            }
        )
        for index in range(len(choices)):
            times = {key: [[0.5, 0.5]] for key in ("tree_time", "eval_time", "update_time")}
            infos.append(
                {"question_id": question_id, "choice_index": index, "generate_time": [2.0], "reset_tree_time": [0.0]}
                | {"accept_length": [[1, 2]], "draft_length": [[4, 4]]}
                | times
            )
    file = folder / "m-temperature-1.0_ea.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in answers))
    (folder / "m-temperature-1.0_ea_info.jsonl").write_text("".join(json.dumps(line) + "\n" for line in infos))
    if sha is not None:
        settings = {"temperature": 1.0, "questions_sha256": sha}
        (folder / "m-temperature-1.0_ea_run.json").write_text(json.dumps({"settings": settings}))
    return file


def write_questions(file: Path, references: list[str]) -> Path:
    """GSM8K's own lines."""
    file.write_text("".join(json.dumps({"question": "How many?", "answer": text}) + "\n" for text in references))
    return file


def table_row(text: str, title: str, name: str) -> list[str]:
    """The cells behind the name in the row of that name, in the table of that title."""
    lines = iter(text.splitlines())
    assert title in lines
    row = next(line for line in lines if line.startswith(f"{name}  "))
    return re.split(" {2,}", row.removeprefix(name).strip())


def test_accuracy_stands_beside_efficiency_and_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write_run(tmp_path / "a", {0: ["It is 18."], 1: ["It is 1,234."], 2: ["It is 5."], 3: ["None."]})
    questions = write_questions(tmp_path / "q.jsonl", ["#### 18", "#### 1234", "#### 6", "#### 7"])
    assert accuracy.main([str(answers), "--question-file", str(questions)]) == 0
    head, row = [line.split("  ") for line in capsys.readouterr().out.splitlines()[2:4]]
    cells = [cell.strip() for cell in row if cell]
    assert [cell.strip() for cell in head if cell][2:4] == ["ACC, %", "no number"]
    assert cells[1] == "4"
    # Wilson's interval of 2 of 4 is 15.0 to 85.0 %.
    assert cells[2] == "50.0 (15.0 to 85.0)"
    # 3 draft tokens in 2 rounds; with the target's own, 5.
    assert cells[3:] == ["1", "2.500", "1.500", "1.50", "3.00"]


def test_choices_of_a_question_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write_run(tmp_path / "a", {0: ["18", "17", "18", "16"], 1: ["3", "3", "3", "3"]})
    questions = write_questions(tmp_path / "q.jsonl", ["#### 18", "#### 3"])
    assert accuracy.main([str(answers), "--question-file", str(questions)]) == 0
    assert "75.0 (" in capsys.readouterr().out


def test_several_runs_are_rows_of_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, text in (("a", "18"), ("b", "19")):
        write_run(tmp_path / folder, {0: [text]})
    questions = write_questions(tmp_path / "q.jsonl", ["#### 18"])
    assert accuracy.main([str(tmp_path / "a"), str(tmp_path / "b"), "--question-file", str(questions)]) == 0
    text = capsys.readouterr().out
    rows = text.splitlines()[3:5]
    assert "100.0 (" in rows[0]
    assert "  0.0 (" in rows[1]
    # Of a single question there is a difference and no interval.
    assert table_row(text, "Less EAGLE-3 (a)", "EAGLE-3 (b)") == ["1", "-100.0", "0.000", "0.00", "0.00"]


def test_another_question_file_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write_questions(tmp_path / "q.jsonl", ["#### 18"])
    answers = write_run(tmp_path / "a", {0: ["18"]}, sha="0" * 64)
    assert accuracy.main([str(answers), "--question-file", str(questions)]) == 0
    assert "another file" in capsys.readouterr().err


def test_absent_answers_are_said_before_questions_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert accuracy.main(["absent"]) == 2
    assert capsys.readouterr().err == "error: absent: no such file or folder\n"


@pytest.mark.parametrize(
    ("references", "complaint"),
    [
        (["#### 18"], "question 1 of the answers is not in the question file"),
        (["#### 18", "#### many"], "question 1: its reference holds no number"),
        (None, "has no reference"),
    ],
)
def test_what_cannot_be_graded_is_one_line(
    tmp_path: Path, references: list[str] | None, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = write_run(tmp_path / "a", {0: ["18"], 1: ["19"]})
    questions = tmp_path / "q.jsonl"
    if references is None:
        questions.write_text('{"question_id": 0, "turns": ["How many?"]}\n')
    else:
        write_questions(questions, references)
    assert accuracy.main([str(answers), "--question-file", str(questions)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert complaint in errors[0]
    assert str(answers) in errors[0]


def test_answers_without_texts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write_run(tmp_path / "a", {0: ["18"]})
    answers.write_text(answers.read_text().replace('["18"]', "[18]"))
    questions = write_questions(tmp_path / "q.jsonl", ["#### 18"])
    assert accuracy.main([str(answers), "--question-file", str(questions)]) == 2
    assert "line 1: 'turns'" in capsys.readouterr().err


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
def test_the_published_answers_end_in_numbers() -> None:
    files = sorted(file for file in PUBLISHED.glob("*/*.jsonl") if not file.name.endswith("_info.jsonl"))
    assert len(files) == 4
    for file in files:
        texts = [json.loads(line)["choices"][0]["turns"][0] for line in file.read_text().splitlines()]
        assert len(texts) == 80
        assert sum(final_number(text) is None for text in texts) <= 2


def test_a_turn_that_was_not_answered_is_not_passed_over() -> None:
    asked = {1: Question(1, ("How many?", "And now?"), reference=("#### 1", "#### 2"))}
    assert accuracy.accuracy({1: [["It is 1.", "Now 3."]]}, asked).share == 0.5
    with pytest.raises(InputError, match="question 1 has 2 references, but fewer turns were answered"):
        accuracy.accuracy({1: [["It is 1."]]}, asked)


# Two questions, whose numbers are 18 and 6. SHORT and LONG accept 5 and 8 draft tokens in 4 rounds; of 2 and 1 of these
# the draft is a single token (draft length 2).
PLAIN = {0: [Turn([(0, 1)] * 3, 8.0, "It is 18.")], 1: [Turn([(0, 1)] * 3, 8.0, "It is 5.")]}
SHORT = {0: [Turn([(3, 4), (0, 2)], 4.0, "It is 18.")], 1: [Turn([(1, 4), (1, 2)], 4.0, "It is 5.")]}
LONG = {0: [Turn([(3, 4), (3, 4)], 4.0, "It is 18.")], 1: [Turn([(1, 4), (1, 2)], 2.0, "It is 6.")]}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with three runs of two questions, and the questions."""
    for method, turns in (("baseline", PLAIN), ("ea", SHORT), ("ea_hsd", LONG)):
        runfiles.write_run(tmp_path / "runs" / f"m-temperature-1.0_{method}.jsonl", turns)
    return tmp_path / "runs", write_questions(tmp_path / "q.jsonl", ["#### 18", "#### 6"])


def test_each_run_is_compared_with_the_first_on_the_same_questions(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main([str(runs[0]), "--question-file", str(runs[1])]) == 0
    text = capsys.readouterr().out
    assert table_row(text, "Accuracy", "EAGLE-3")[3:5] == ["2.250 (2.000 to 2.500)", "1.250 (1.000 to 1.500)"]
    # 14 tokens in 8 s less 8 in 16; the draws of one question alone are 6 and 5 in 4 s, each less 4 in 8 s.
    assert table_row(text, "Less autoregressive", "EAGLE-3") == [
        *("2", "0.0", "1.250 (1.000 to 1.500)", "0.62 (0.50 to 0.75)", "0.88 (0.75 to 1.00)")
    ]
    assert table_row(text, "Less autoregressive", "HSD")[1] == "50.0 (0.0 to 100.0)"


def test_another_run_to_compare_with(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    against = runs[0] / "m-temperature-1.0_ea_info.jsonl"
    assert accuracy.main([str(runs[0]), "--against", str(against), "--question-file", str(runs[1])]) == 0
    text = capsys.readouterr().out
    # HSD accepted 8 draft tokens in 4 rounds, EAGLE-3 5; question 1 is all that one of them answered better.
    assert table_row(text, "Less EAGLE-3", "HSD")[:3] == ["2", "50.0 (0.0 to 100.0)", "0.750 (0.000 to 1.500)"]
    assert table_row(text, "Less EAGLE-3", "autoregressive")[2].startswith("-1.250 (")


def test_block_efficiency_of_rounds_of_full_draft_length(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(runs[0]), "--question-file", str(runs[1])]
    assert accuracy.main(arguments) == 0
    whole = capsys.readouterr().out
    assert accuracy.main([*arguments, "--gamma", "4"]) == 0
    text = capsys.readouterr().out
    # As stats --gamma 4 keeps them: rounds (3, 4), (1, 4) and (3, 4), (3, 4), (1, 4).
    assert table_row(text, "Accuracy", "EAGLE-3")[3:5] == ["3.000 (2.000 to 4.000)", "2.000 (1.000 to 3.000)"]
    assert table_row(text, "Accuracy", "HSD")[4].startswith("2.333 (")
    assert table_row(text, "Accuracy", "autoregressive")[3:5] == ["-", "-"]
    assert table_row(text, "Less autoregressive", "HSD")[2] == "-"
    assert "autoregressive 0 of 6; EAGLE-3 2 of 4; HSD 3 of 4" in text
    # An answer is right and takes its time as a whole.
    for name in ("autoregressive", "EAGLE-3", "HSD"):
        kept, every = table_row(text, "Accuracy", name), table_row(whole, "Accuracy", name)
        assert kept[:3] + kept[5:] == every[:3] + every[5:]


def test_runs_of_other_questions_are_named_and_not_subtracted(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = runs[0] / "m-temperature-1.0_ea.jsonl"
    runfiles.record(other, {"temperature": 1.0, "questions_sha256": "0" * 64})
    runfiles.record(runs[0] / "m-temperature-1.0_baseline.jsonl", {"temperature": 1.0, "questions_sha256": "1" * 64})
    assert accuracy.main([str(runs[0]), "--question-file", str(runs[1])]) == 0
    printed = capsys.readouterr()
    assert "no difference is shown" in printed.err
    assert table_row(printed.out, "Less autoregressive", "HSD")
    with pytest.raises(StopIteration):
        table_row(printed.out, "Less autoregressive", "EAGLE-3")
    assert accuracy.main([str(runs[0]), "--against", str(other), "--question-file", str(runs[1])]) == 2
    assert "answers another file of questions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--gamma", "1"], "error: --gamma must be 2 or more (the root is included), not 1"),
        (["--gamma", "9"], "no round has draft length 9; there are 2, 4"),
        (["--against", "absent"], "error: absent: no such file or folder"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    runs: tuple[Path, Path], more: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main([str(runs[0]), "--question-file", str(runs[1]), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line
