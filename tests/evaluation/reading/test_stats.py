"""The program ``stats`` as people run it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest

from eagle.evaluation import stats
from tests.evaluation.runfiles import Turn, record, write_run

PUBLISHED = Path(
    os.environ.get("EAGLE_PUBLISHED_RESULTS", Path(__file__).parents[4] / "shared" / "data" / "published_results")
)
# 10 and 6 tokens in 10 s each: 0.8 tokens/s; accepted 6 in 8 rounds.
DRAFTED = {
    81: [Turn([(2, 4), (1, 4), (2, 4), (0, 3)], 10.0)],
    82: [Turn([(0, 3), (1, 3), (0, 2), (0, 2)], 10.0)],
}
# 6 tokens in 16 s and 4 in 8 s.
PLAIN = {81: [Turn([(0, 1)] * 5, 16.0)], 82: [Turn([(0, 1)] * 3, 8.0)]}
CATEGORIES = {81: "writing", 82: "math"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "tiny-temperature-1.0_baseline.jsonl", PLAIN, CATEGORIES)
    write_run(tmp_path / "runs" / "tiny-temperature-1.0_ea.jsonl", DRAFTED, CATEGORIES)
    return tmp_path / "runs"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert stats.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    """The cells of the first line of a table that begins with a name, without their intervals."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name}  "))
    return [name, *(cell.partition(" (")[0] for cell in re.split(" {2,}", line.removeprefix(name).strip()))]


def test_a_folder_of_runs_beside_its_baseline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, folder)
    assert text.splitlines()[0] == "tiny, temperature 1.0"
    assert row(text, "autoregressive")[1:7] == ["2", "8", "10", "0.42", "0.00", "1.00x"]
    cells = row(text, "EAGLE-3")
    assert cells[1:6] == ["2", "8", "16", "0.80", "0.30"]
    # 16 / 20 over 10 / 24.
    assert cells[6] == "1.92x"
    assert "0.750" in cells
    assert cells[-1] == "1.750"


def test_a_baseline_that_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "elsewhere.jsonl", PLAIN)
    text = printed(capsys, folder / "tiny-temperature-1.0_ea.jsonl", "--baseline", other)
    assert row(text, "elsewhere T=?")[6] == "1.00x"
    assert row(text, "EAGLE-3 T=1.0 tiny")[6] == "1.92x"


@pytest.mark.parametrize("name", ["tiny-temperature-0.5_baseline", "tiny-temperature-1.0-top_p-0.9_baseline"])
def test_a_baseline_of_other_sampling_is_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    other = write_run(tmp_path / f"{name}.jsonl", PLAIN)
    text = printed(capsys, folder / "tiny-temperature-1.0_ea.jsonl", other)
    drafted = next(line for line in text.splitlines() if line.startswith("EAGLE-3"))
    assert "x (" not in drafted
    assert "1.92x" not in drafted


def test_of_several_baselines_the_one_in_the_same_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = {question: [Turn(turn.rounds, 2 * turn.seconds) for turn in turns] for question, turns in PLAIN.items()}
    write_run(tmp_path / "other" / "tiny-temperature-1.0_baseline.jsonl", slower)
    write_run(tmp_path / "other" / "tiny-temperature-1.0_ea.jsonl", DRAFTED)
    text = printed(capsys, tmp_path)
    assert row(text, "EAGLE-3 (runs)")[6] == "1.92x"
    assert row(text, "EAGLE-3 (other)")[6] == "3.84x"


def test_a_baseline_of_other_questions_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Benchmarks count their questions from 0 alike."""
    plain = write_run(tmp_path / "gsm8k" / "tiny-temperature-1.0_baseline.jsonl", PLAIN)
    drafted = [write_run(tmp_path / bench / "tiny-temperature-1.0_ea.jsonl", DRAFTED) for bench in ("gsm8k", "sum")]
    for run, sha256 in ((plain, "a" * 64), (drafted[0], "a" * 64), (drafted[1], "b" * 64)):
        record(run, {"questions_sha256": sha256})
    text = printed(capsys, tmp_path)
    assert row(text, "EAGLE-3 (gsm8k)")[6] == "1.92x"
    assert not any(cell.endswith("x") for cell in row(text, "EAGLE-3 (sum)"))
    for arguments in (["--compare", plain, drafted[1]], [*drafted, "--baseline", plain]):
        assert stats.main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert f"{drafted[1]} answers another file of questions than {plain}" in error
    # Of a run without settings nothing but its ids is known.
    drafted[1].with_name("tiny-temperature-1.0_ea_run.json").unlink()
    assert row(printed(capsys, tmp_path), "EAGLE-3 (sum)")[6] == "1.92x"


def test_another_machine_is_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, drafted = sorted(file for file in folder.glob("*.jsonl") if "_info" not in file.name)
    record(plain, {"device": "cpu", "dtype": "float32"}, threads=2, torch="2.13")
    record(drafted, {"device": "cpu", "dtype": "float32"}, threads=2, torch="2.13")
    assert stats.main([str(folder)]) == 0
    assert capsys.readouterr().err == ""
    record(drafted, {"device": "cuda", "dtype": "float32"}, threads=8, torch="2.13", device_name="H100")
    for arguments in ([folder], ["--compare", plain, drafted]):
        assert stats.main([str(argument) for argument in arguments]) == 0
        said = capsys.readouterr()
        assert "1.92" in said.out
        assert str(plain) in said.err
        assert str(drafted) in said.err
        assert re.search(r"timed on different terms \(device (cpu, cuda|cuda, cpu); threads (2, 8|8, 2)\)", said.err)


def test_one_folder_may_hold_other_files_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("foreign.jsonl", "foreign_info.jsonl"):
        (folder / name).write_text("[1]\n")
    (folder / "empty_info.jsonl").touch()
    assert stats.main([str(folder)]) == 0
    said = capsys.readouterr()
    assert row(said.out, "EAGLE-3")[6] == "1.92x"
    assert "foreign.jsonl: no question with both" in said.err
    assert "empty_info.jsonl: not a run" in said.err
    assert stats.main([str(folder), str(folder / "foreign.jsonl")]) == 2


def test_a_baseline_with_fewer_questions_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(folder / "tiny-temperature-1.0_baseline.jsonl", {81: PLAIN[81]})
    text = printed(capsys, folder)
    # 10 / 10 over 6 / 16.
    assert row(text, "EAGLE-3")[6] == "2.67x"
    assert "EAGLE-3: speed-up over 1 of 2 questions" in text


def test_tables_by_category_depth_and_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, folder, "--by", "category", "--by", "depth", "--by", "time")
    by_category = text[text.index("EAGLE-3 by category") :]
    # 1 over 0.375, 0.6 over 0.5; a single question has no interval.
    assert row(by_category, "writing") == ["writing", "1", "4", "10", "1.00", "0.50", "2.67x", "1.250", "2.250"]
    assert row(by_category, "math") == ["math", "1", "4", "6", "0.60", "0.10", "1.20x", "0.250", "1.250"]
    by_depth = text[text.index("Acceptance by depth") :]
    # Depth 1: 4 of 8; 2: 2 of 6; 3: 0 of 3.
    assert row(by_depth, "EAGLE-3")[1:4] == ["0.500", "0.333", "0.000"]
    time = text[text.index("Where the time goes") :]
    # Target 8 of 20 s.
    assert "40.0%" in row(time, "EAGLE-3")


def test_a_baseline_has_the_categories_of_its_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(folder / "tiny-temperature-1.0_baseline.jsonl", PLAIN)
    text = printed(capsys, folder, "--by", "category")
    assert row(text[text.index("EAGLE-3 by category") :], "writing")[6] == "2.67x"


def test_a_table_that_cannot_be_made_is_explained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, drafted = sorted(file for file in folder.glob("*.jsonl") if "_info" not in file.name)
    other = write_run(tmp_path / "other.jsonl", {82: [Turn([(1, 4)], 1.0)]})
    for arguments, why in (
        ([plain, "--by", "depth"], "--by depth: there are only autoregressive runs"),
        ([folder, "--by", "time", "--gamma", 4], "--by time: the rounds that --gamma keeps"),
        (["--compare", drafted, other, "--gamma", 4], "--compare: on the questions of both"),
    ):
        assert stats.main([str(argument) for argument in arguments]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(why)
    assert stats.main([str(folder), "--by", "depth", "--by", "time"]) == 0
    assert capsys.readouterr().err == ""


def test_categories_from_a_question_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "tiny-temperature-1.0_ea.jsonl", DRAFTED)
    assert stats.main([str(run), "--by", "category"]) == 2
    assert "--question-file" in capsys.readouterr().err
    questions = tmp_path / "question.jsonl"
    questions.write_text(
        "".join(
            json.dumps({"question_id": question, "category": category, "turns": ["?"]}) + "\n"
            for question, category in CATEGORIES.items()
        )
    )
    text = printed(capsys, run, "--by", "category", "--question-file", questions)
    assert row(text, "writing")[1:4] == ["1", "4", "10"]


def test_two_runs_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = (folder / "tiny-temperature-1.0_baseline_info.jsonl", folder / "tiny-temperature-1.0_ea.jsonl")
    text = printed(capsys, "--compare", *pair)
    compared = text[text.index("EAGLE-3 over autoregressive, 2 questions of both") :]
    cells = row(compared, "tokens/s")
    assert cells[1:4] == ["0.42", "0.80", "0.38"]
    assert "1.920x" in cells
    # The baseline accepts nothing, so there is no ratio.
    assert row(compared, "accepted/round")[-1] == "-"


def test_gamma_keeps_rounds_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, folder, "--gamma", 4)
    assert "tokens/s" not in text.splitlines()[2]
    assert "autoregressive" not in text
    # 2, 1 and 2 accepted in three rounds, all of one question.
    cells = row(text, "EAGLE-3")
    assert cells[1:4] == ["2", "3", "1.667"]
    assert "EAGLE-3 3 of 8" in text


def test_formats_hold_the_same_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    markdown = printed(capsys, folder, "--format", "md")
    line = next(line for line in markdown.splitlines() if line.startswith("| EAGLE-3 |"))
    assert [cell.strip() for cell in line.split("|")][2:6] == ["2", "8", "16", "0.80 (0.60 to 1.00)"]
    ruler = next(line for line in markdown.splitlines() if line.startswith("| ---"))
    assert ruler.count("|") == line.count("|")

    run = json.loads(printed(capsys, folder, "--format", "json", "--by", "category"))["runs"][1]
    assert run["method"] == "ea"
    assert run["tokens_per_second"]["value"] == pytest.approx(0.8)
    assert run["speed_up"]["value"] == pytest.approx(1.92)
    assert run["speed_up"]["low"] < 1.92 < run["speed_up"]["high"]
    assert run["acceptance_at_depth"][0]["value"] == 0.5
    assert run["time_share"]["target"] == pytest.approx(0.4)
    assert run["categories"]["math"]["accepted_per_round"]["value"] == 0.25
    assert run["categories"]["math"]["accepted_per_round"]["low"] is None

    rows = list(csv.DictReader(io.StringIO(printed(capsys, folder, "--format", "csv", "--by", "category"))))
    assert [(row["run"], row["category"]) for row in rows] == [
        ("autoregressive", ""),
        ("autoregressive", "writing"),
        ("autoregressive", "math"),
        ("EAGLE-3", ""),
        ("EAGLE-3", "writing"),
        ("EAGLE-3", "math"),
    ]
    assert float(rows[3]["speed_up"]) == pytest.approx(1.92)
    assert float(rows[4]["acceptance_at_depth_1"]) == 0.75
    assert rows[0]["full_acceptance"] == ""


def test_skipped_lines_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "tiny-temperature-1.0_ea_info.jsonl").open("a") as file:
        file.write('{"question_id": 83, "acc')
    assert "Malformed lines that were skipped: 1." in printed(capsys, folder)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name a run"),
        (["absent"], "absent: no such file or folder"),
        (["runs", "--gamma", "1"], "--gamma must be 2 or more"),
        (["runs", "--gamma", "9"], "no round has draft length 9"),
        (["runs/tiny-temperature-1.0_baseline.jsonl", "--gamma", "4"], "only autoregressive runs"),
        (
            ["runs", "--gamma", "4", "--baseline", "runs/tiny-temperature-1.0_baseline.jsonl"],
            "--gamma does not go with",
        ),
        (["--compare", "runs", "runs"], "2 runs are in this folder"),
        (["runs", "--baseline", "runs"], "2 runs are in this folder"),
        ([f"{'x' * 5000}"], "File name too long"),
        (["runs", "--baseline", f"{'x' * 5000}"], "File name too long"),
        (["--compare", *["runs/tiny-temperature-1.0_ea.jsonl"] * 2, "--format", "csv"], "--format csv"),
        (["--compare", "runs/tiny-temperature-1.0_ea.jsonl", "other.jsonl"], "no question is in both"),
        (["runs", "--question-file", "absent.jsonl"], "cannot read the question file"),
        (["runs", "--html", "runs"], "cannot write to runs"),
        (["runs", "--plot", "other.jsonl"], "cannot write to other.jsonl"),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "other.jsonl", {1: PLAIN[81]})
    assert stats.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert complaint in line


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the files published with the HSD paper are not here")
@pytest.mark.parametrize(
    ("path", "figures"),
    [
        ("h100_eagle", ["115.48", "88.10", "3.217"]),
        ("h100_HSD", ["137.05", "107.31", "3.608"]),
        ("h200_eagle", ["152.71", "116.50", "3.217"]),
        ("h200_HSD", ["172.95", "135.42", "3.608"]),
    ],
)
def test_published_files_give_the_published_figures(
    capsys: pytest.CaptureFixture[str], path: str, figures: list[str]
) -> None:
    text = printed(capsys, PUBLISHED / path)
    cells = row(text, "HSD" if path.endswith("HSD") else "EAGLE-3")
    assert cells[1] == "80"
    assert cells[4:7] == figures
