"""Counts of the HSD paper's GSM8K code, as ``stats`` shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eagle.evaluation import stats

# Two questions of 2 and 3 rounds: 4, 0, 10, 2, 1 draft tokens accepted, the last two of short drafts.
PUBLISHED = {
    "draft_eval": [[10, 10], [10, 3, 1]],
    "target_eval": [[1, 1], [1, 1, 1]],
    "total_step": [[1, 1], [1, 1, 1]],
    "sample_length": [[5, 1], [11, 3, 2]],
    "step_back_probs": [],
    "p_i": [[[float("nan"), 1.0]]],
    "hist_lengths": [[[0, 5], [0, 1]], [[0, 11], [0, 3], [0, 2]]],
    "time": [-2.0, -2.0],
}


def write(folder: Path, held: object, name: str = "Qwen_72B_0.5B_naive_gamma_10_total_counts.json") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(held if isinstance(held, str) else json.dumps(held))
    return file


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert stats.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def rows(text: str, name: str) -> list[list[str]]:
    """The cells behind the name, in all rows that begin with it."""
    lines = [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]
    return [re.split(" {2,}", line) for line in lines]


def test_the_published_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, shares = rows(printed(capsys, write(tmp_path, PUBLISHED)), "Qwen_72B_0.5B_naive_gamma_10")
    # 17 draft tokens and 22 tokens in 5 rounds and 4 s; the questions alone 2 and 13 / 3 a round, 3 and 8 tokens/s.
    assert figures == ["2", "5", "3.400 (2.000 to 4.333)", "4.400 (3.000 to 5.333)", "5.50 (3.00 to 8.00)"]
    assert shares == [*("0.200 " * 3).split(), "0.000", "0.200", *("0.000 " * 5).split(), "0.200"]


def test_only_rounds_of_the_full_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their gamma 10 is 11 with the root, as in the runs of this package."""
    text = printed(capsys, write(tmp_path, PUBLISHED), "--gamma", 11)
    figures, _ = rows(text, "Qwen_72B_0.5B_naive_gamma_10")
    assert figures == ["2", "3", "4.667 (2.000 to 10.000)", "5.667 (3.000 to 11.000)"]
    assert "rounds kept: Qwen_72B_0.5B_naive_gamma_10 3 of 5" in text


@pytest.mark.parametrize(
    "held",
    [
        {"total_counts": {"0": 6, "2": 3, "10": 1}},
        {"10": 1, "0": 6, "2": 3},
        [6, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        {"total_counts": [6, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1]},
    ],
)
def test_histograms(held: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, shares = rows(printed(capsys, write(tmp_path, held, "hsd_total_counts.json")), "hsd")
    assert figures == ["-", "10", "1.600", "2.600"]
    assert shares == ["0.600", "0.000", "0.300", *["0.000"] * 7, "0.100"]


def test_several_files_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / place, rounds, "x_total_counts.json") for place, rounds in (("a", [1]), ("b", [1, 1]))]
    files.append(write(tmp_path, PUBLISHED, "total_counts.json"))
    held = json.loads(printed(capsys, *files, "--format", "json"))["counts"]
    assert [counts["accepted"] for counts in held] == [[1], [1, 1], [1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1]]
    assert held[0]["tau"] == {"value": 1.0, "low": None, "high": None}
    assert held[2]["tokens_per_second"]["value"] == 5.5
    text = printed(capsys, *files)
    assert all(f"\n{file} " in text for file in files[:2])
    assert "| total_counts.json | 2 | 5 |" in printed(capsys, *files, "--format", "md")


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ("", "no counts of the published code"),
        ("[" * 10_000, "nested too deep"),
        ({}, "neither an object with 'sample_length'"),
        ({"draft_eval": [[1]]}, "neither an object with 'sample_length'"),
        ("7", "neither an object with 'sample_length'"),
        ({"sample_length": [[1]]}, "'draft_eval' is not a list"),
        (PUBLISHED | {"draft_eval": [[10, 10], [10]]}, "different numbers of rounds"),
        (PUBLISHED | {"sample_length": [[5, 1], [11, 3, 0]]}, "'sample_length' of question 1 holds something other"),
        (PUBLISHED | {"sample_length": [[5, 1.5], [11, 3, 2]]}, "'sample_length' of question 0 holds something other"),
        (PUBLISHED | {"sample_length": [[5, 1], None]}, "'sample_length' of question 1 is not a list"),
        (PUBLISHED | {"time": [1.0]}, "'time' is not a list with the seconds of each of its 2 questions"),
        (PUBLISHED | {"time": [1.0, float("nan")]}, "'time' holds what is no time"),
        (PUBLISHED | {"draft_eval": [], "sample_length": [80, 90]}, "as of autoregressive decoding"),
        (PUBLISHED | {"draft_eval": [], "sample_length": [], "time": []}, "no rounds of drafting in it"),
        ([], "no rounds of drafting in it"),
        ([1, -1], "not a whole number of 0 or more"),
        ({"0": "many"}, "not a whole number of 0 or more"),
        ({"0": 1, "00": 1}, "occurs twice"),
        ({"99999999999": 1}, "more than 10000 tokens"),
    ],
)
def test_what_is_no_counts_is_one_line(
    held: object, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, held)
    assert stats.main([str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: ")
    assert why in line


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["absent_total_counts.json"], "cannot read absent_total_counts.json: No such file"),
        (["x_total_counts.json", "runs"], "runs is no file of counts"),
        (["x_total_counts.json", "--by", "depth"], "--by is for runs"),
        (["x_total_counts.json", "--question-file", "q.jsonl"], "--question-file is for runs"),
        (["x_total_counts.json", "--format", "csv"], "--format csv holds one table of runs"),
        (["x_total_counts.json", "--gamma", "4"], "a histogram does not tell how long drafts were"),
        (
            ["y_total_counts.json", "--gamma", "10"],
            "no round has draft length 10, the root included; there are 2, 4, 11",
        ),
    ],
)
def test_what_is_not_for_counts_is_one_line(
    arguments: list[str],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [1, 1], "x_total_counts.json")
    write(tmp_path, PUBLISHED, "y_total_counts.json")
    assert stats.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert why in line
