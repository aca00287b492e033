"""The programs ``speed`` and ``equal``."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle.evaluation import equal, speed
from tests.evaluation.runfiles import Turn, answer_line, info_line, record, write_run

DRAFTED = {
    1: [Turn([(2, 4), (1, 4)], 4.0)],
    2: [Turn([(1, 3)], 3.0)],
    3: [Turn([(0, 3)], 2.0)],
}
PLAIN = {
    1: [Turn([(0, 1)] * 4, 10.0)],
    2: [Turn([(0, 1)] * 2, 6.0)],
    3: [Turn([(0, 1)], 4.0)],
}


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line and not line.startswith("mean")}


def test_speed_by_category_and_overall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    categories = {1: "writing", 2: "math", 3: "writing"}
    run = write_run(tmp_path / "m-temperature-1.0_ea.jsonl", DRAFTED, categories)
    baseline = write_run(tmp_path / "m-temperature-1.0_baseline.jsonl", PLAIN)
    assert speed.main([str(run), str(baseline)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("EAGLE-3 over autoregressive, 3 questions of both\n")
    table = rows(said.out)
    # 6 + 2 tokens in 6 s, over 5 + 2 in 14 s; 3 accepted in 3 rounds.
    assert table["writing"][:4] == ["2", "1.33", "0.50", "2.67x"]
    assert table["writing"][-1] == "2.000"
    # 3 tokens in 3 s, over 3 in 6 s.
    assert table["math"] == ["1", "1.00", "0.50", "2.00x", "2.000"]
    # 11 in 9 s, over 10 in 20 s.
    assert table["overall"][:4] == ["3", "1.22", "0.50", "2.44x"]
    assert said.err == ""


def test_beside_other_tasks_mt_bench_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    categories = {1: "writing", 2: "translation", 3: "math"}
    run = write_run(tmp_path / "a.jsonl", DRAFTED, categories)
    baseline = write_run(tmp_path / "b.jsonl", PLAIN, categories)
    assert speed.main([str(run), str(baseline)]) == 0
    said = capsys.readouterr()
    table = rows(said.out)
    assert table["mt_bench"][:3] == ["2", "1.33", "0.50"]
    assert table["translation"][0] == "1"
    assert "writing" not in table
    assert "not an autoregressive run" in said.err


def test_speed_needs_common_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a.jsonl", DRAFTED)
    baseline = write_run(tmp_path / "b.jsonl", {9: PLAIN[1]})
    assert speed.main([str(run), str(baseline)]) == 2
    assert "no question is in both" in capsys.readouterr().err


def texts(file: Path, *answers: tuple[int, list[str]]) -> Path:
    """Write answers of given texts."""
    file.write_text("".join(answer_line(q, [[Turn([], 1.0, text) for text in turns]]) for q, turns in answers))
    return file


def test_equal_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = texts(tmp_path / "m-temperature-0.0_ea.jsonl", (1, ["One.", "Two."]), (2, ["Three."]))
    b = texts(tmp_path / "m-temperature-0.0_baseline.jsonl", (2, ["Three."]), (1, ["One.", "Two."]))
    assert equal.main([str(a), str(b)]) == 0
    said = capsys.readouterr()
    assert said.out == "2 of 2 answers are equal\n"
    assert said.err == ""


def test_any_file_of_a_run_or_its_folder_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a" / "m-temperature-1.0_ea.jsonl", DRAFTED)
    baseline = write_run(tmp_path / "b" / "m-temperature-1.0_baseline.jsonl", PLAIN)
    for file in (run, baseline):
        record(file, {})
    printed = set()
    for first in (run, run.with_name(f"{run.stem}_info.jsonl"), run.with_name(f"{run.stem}_run.json"), run.parent):
        assert equal.main([str(first), str(baseline.parent)]) == 0
        assert speed.main([str(first), str(baseline.parent)]) == 0
        printed.add(capsys.readouterr().out)
    assert len(printed) == 1
    write_run(tmp_path / "b" / "another.jsonl", PLAIN)
    for program in (equal, speed):
        assert program.main([str(run), str(baseline.parent)]) == 2
        assert "2 runs are in this folder" in capsys.readouterr().err


def test_speed_over_a_baseline_of_other_questions_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record(write_run(tmp_path / "a.jsonl", DRAFTED), {"questions_sha256": "a", "device": "cpu"})
    baseline = write_run(tmp_path / "b.jsonl", PLAIN)
    record(baseline, {"questions_sha256": "b"})
    assert speed.main([str(run), str(baseline)]) == 2
    assert "answers another file of questions" in capsys.readouterr().err
    record(baseline, {"questions_sha256": "a", "device": "cuda"})
    assert speed.main([str(run), str(baseline)]) == 0
    assert "(device cpu, cuda)" in capsys.readouterr().err


def test_where_texts_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = texts(tmp_path / "a.jsonl", (1, ["One.", "It is red, \u00e9", "x"]), (2, ["Same."]), (3, ["Long", "more"]))
    b = texts(tmp_path / "b.jsonl", (1, ["One.", "It is blue", "y"]), (2, ["Same."]), (3, ["Lon"]))
    assert equal.main([str(a), str(b)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "question 1, turn 2, character 6, after 'It is '",
        "  A: 'red, \u00e9'",
        "  B: 'blue'",
        "question 3, turn 1, character 3, after 'Lon'",
        "  A: 'g'",
        "  B: ends here",
        "1 of 3 answers are equal",
    ]


def test_a_missing_answer_or_turn_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = texts(tmp_path / "a.jsonl", (1, ["One."]), (2, ["Two."]))
    assert equal.main([str(a), str(texts(tmp_path / "b.jsonl", (1, ["One."])))]) == 1
    assert f"only in {a}: 1 answers, the first to question 2" in capsys.readouterr().out
    assert equal.main([str(a), str(texts(tmp_path / "c.jsonl", (1, ["One.", "More."]), (2, ["Two."])))]) == 1
    assert "  A: no such turn" in capsys.readouterr().out


def test_sampled_texts_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = texts(tmp_path / "m-temperature-0.0_ea.jsonl", (1, ["One."]))
    b = texts(tmp_path / "m-temperature-1.0_ea.jsonl", (1, ["One."]))
    assert equal.main([str(a), str(b)]) == 0
    assert "temperature is above 0" in capsys.readouterr().err


def test_what_cannot_be_compared_has_a_status_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = texts(tmp_path / "a.jsonl", (1, ["One."]))
    for name in ("c", "d"):
        write_run(tmp_path / f"{name}.jsonl", DRAFTED)
    lines_without_texts = tmp_path / "e.jsonl"
    lines_without_texts.write_text(info_line(1, [Turn([], 1.0)]))
    for other, complaint in (
        (tmp_path / "absent.jsonl", "cannot read"),
        (tmp_path / ("x" * 5000), "File name too long"),
        (lines_without_texts, "no answers in it"),
        (tmp_path, "2 runs are in this folder"),
        (texts(tmp_path / "b.jsonl", (2, ["Two."])), "no question is in both"),
    ):
        assert equal.main([str(a), str(other)]) == 2
        assert complaint in capsys.readouterr().err
