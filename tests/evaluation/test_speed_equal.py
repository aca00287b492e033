"""The programs ``speed`` and ``equal``."""

from __future__ import annotations

import json
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


def test_seconds_of_reading_prompts_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "m-temperature-1.0_ea.jsonl", {1: [Turn([(2, 3)], 3.0, prefill_seconds=2.0)]}, {1: "qa"})
    plain = {1: [Turn([(0, 1)] * 3, 9.0, prefill_seconds=1.0)]}
    baseline = write_run(tmp_path / "m-temperature-1.0_baseline.jsonl", plain)
    assert speed.main([str(run), str(baseline), "--writing"]) == 0
    # 4 tokens in 3 s, of which 2 were for the prompt and, 0.2 of them, the first draft; over 4 in 9 s, where it was 1.
    assert rows(capsys.readouterr().out)["qa"][:4] == ["1", f"{4 / 1.2:.2f}", f"{4 / 8.2:.2f}", f"{8.2 / 1.2:.2f}x"]
    run.with_name(run.stem + "_info.jsonl").unlink()
    assert speed.main([str(run), str(baseline), "--writing"]) == 2
    assert "does not tell how long prompts took to read" in capsys.readouterr().err


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


def alone(file: Path, baseline: bool, of: str) -> Path:
    """Answers as EAGLE or Spec-Bench publish them: two questions, of two turns and of one."""
    lines = []
    for number, category, rounds in ((81, "writing", [[3, 1], [2]]), (401, "rag", [[4, 4]])):
        tokens = [sum(turn) for turn in rounds]
        steps = [[1] * total for total in tokens] if baseline else rounds
        choice = {"index": 0, "turns": ["x" * total for total in tokens]}
        choice |= {"new_tokens": tokens, "wall_time": [total * 0.5 if baseline else total * 0.25 for total in tokens]}
        if of == "EAGLE":
            choice["idxs"] = [len(turn) - 1 for turn in steps]
        elif of == "Spec-Bench":
            choice["decoding_steps"] = [len(turn) for turn in steps]
            choice["accept_lengths"] = [length for turn in steps for length in turn]
        line = {"question_id": number, "answer_id": "a", "model_id": "m", "choices": [choice], "tstamp": 0.0}
        lines.append(line | ({"category": category} if of == "Spec-Bench" else {}))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize(("of", "accepted"), [("EAGLE", "2.800"), ("Spec-Bench", "2.800"), ("others", "-")])
def test_answers_without_info_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str, accepted: str
) -> None:
    run, baseline = alone(tmp_path / "a.jsonl", False, of), alone(tmp_path / "b.jsonl", True, of)
    assert equal.main([str(run), str(baseline)]) == 0
    assert capsys.readouterr().out == "2 of 2 answers are equal\n"
    assert speed.main([str(run), str(baseline)]) == 0
    said = capsys.readouterr()
    table = rows(said.out)
    # 14 tokens in 3.5 s, over 14 in 7 s; 14 tokens of 5 rounds.
    assert table["overall"][:4] == ["2", "4.00", "2.00", "2.00x"]
    assert table["overall"][-1] == accepted
    assert ("rag" in table) == (of == "Spec-Bench")
    assert "mean over questions of each one's tokens/s, as in Spec-Bench: 4.00, baseline 2.00" in said.out
    # The categories may be had from the questions.
    questions = tmp_path / "question.jsonl"
    told = [{"question_id": number, "category": name, "turns": ["?"]} for number, name in ((81, "math"), (401, "qa"))]
    questions.write_text("\n".join(map(json.dumps, told)))
    assert speed.main([str(run), str(baseline), "--question-file", str(questions)]) == 0
    assert ("qa" in rows(capsys.readouterr().out)) == (of != "Spec-Bench")


def test_means_over_questions_are_not_the_ratio_of_the_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "m-temperature-1.0_ea.jsonl", DRAFTED)
    baseline = write_run(tmp_path / "m-temperature-1.0_baseline.jsonl", PLAIN)
    assert speed.main([str(run), str(baseline)]) == 0
    # (6 / 4 + 3 / 3 + 2 / 2) / 3 over (5 / 10 + 3 / 6 + 2 / 4) / 3.
    assert "Spec-Bench: 1.17, baseline 0.50, speed-up 2.33x" in capsys.readouterr().out


def test_an_own_run_without_its_info_counts_its_rounds_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = set()
    for name in ("whole", "alone"):
        run = record(write_run(tmp_path / name / "m-temperature-1.0_ea.jsonl", DRAFTED), {})
        baseline = record(write_run(tmp_path / name / "m-temperature-1.0_baseline.jsonl", PLAIN), {})
        if name == "alone":
            for file in (run, baseline):
                file.with_name(f"{file.stem}_info.jsonl").unlink()
        assert speed.main([str(run), str(baseline)]) == 0
        accepted.add(rows(capsys.readouterr().out)["overall"][-1])
    assert accepted == {"2.000"}


def test_answers_that_tell_no_times_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question_id": 1, "choices": [{"index": 0, "turns": ["x"]}]}\n')
    assert speed.main([str(file), str(file)]) == 2
    assert "no answers with 'new_tokens' and 'wall_time'" in capsys.readouterr().err


def unanswered(file: Path) -> None:
    """Say of the last turn of question 1 that it could not be answered."""
    first, *others = file.read_text().splitlines()
    answer = json.loads(first)
    choice = answer["choices"][0]
    choice["turns"][-1] = ""
    choice["unanswered"] = [None] * (len(choice["turns"]) - 1) + ["too long"]
    file.write_text("\n".join([json.dumps(answer), *others]) + "\n")


def test_what_could_not_be_answered_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        texts(file, (1, ["One."]), (2, ["Two."]))
        unanswered(file)
    assert equal.main(list(map(str, files))) == 0
    said = capsys.readouterr()
    assert said.out == "1 of 1 answers are equal\n"
    assert "a.jsonl: 1 answers without text, as the question could not be answered (1); left out" in said.err
    # Where only one run has it, they differ.
    texts(files[1], (1, ["One."]), (2, ["Two."]))
    assert equal.main(list(map(str, files))) == 1
    assert speed.main(list(map(str, files))) == 0
    assert "1 questions had a turn that could not be answered (1); left out" in capsys.readouterr().err
