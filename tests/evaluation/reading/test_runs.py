"""Reading runs: what is read, what is refused, and what is left out and said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eagle.errors import InputError
from eagle.evaluation.answering.records import RunFiles
from eagle.evaluation.reading.naming import About, labels
from eagle.evaluation.reading.runs import find_run, find_runs, only_rounds, read_run, read_runs
from tests.evaluation.runfiles import Turn, answer_line, info_line, write_run

# Two turns of question 81 and one of question 82.
TURNS = {
    81: [Turn([(2, 4), (0, 3)], 5.0), Turn([(1, 2)], 3.0)],
    82: [Turn([(3, 4)], 2.0)],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "tiny-temperature-0.7-top_p-0.9_ea_hsd.jsonl", TURNS, {81: "writing"})


def info_of(answers: Path) -> Path:
    return answers.with_name(answers.stem + "_info.jsonl")


def test_reads_rounds_by_question(run: Path) -> None:
    read = read_run(run)
    assert read.questions == (81, 82)
    assert read.categories == ("writing", None)
    assert read.offsets.tolist() == [0, 3, 4]
    assert read.accept_length.tolist() == [2, 0, 1, 3]
    assert read.draft_length.tolist() == [4, 3, 2, 4]
    assert read.tree_time.tolist() == [1.0] * 4
    assert read.update_time.tolist() == [0.5] * 4
    assert read.draft_time is not None
    assert read.draft_time.tolist() == [0.2] * 4
    # 1 of the prefill, 2 + 1, 0 + 1; and 1, 1 + 1.
    assert read.new_tokens.tolist() == [5 + 3, 5]
    assert read.generate_time.tolist() == [8.0, 2.0]
    assert read.reset_tree_time.tolist() == [1.2, 0.6]
    assert read.first_draft_time is not None
    assert read.first_draft_time.tolist() == [0.4, 0.2]
    assert (read.skipped, read.gamma, read.rounds_read) == (0, None, 4)
    assert read.about == About("tiny", "ea_hsd", 0.7, 0.9)


def test_the_settings_beside_a_run_go_before_its_name(tmp_path: Path) -> None:
    answers = write_run(tmp_path / "mine.jsonl", TURNS)
    assert read_run(answers).about == About("mine", "mine", None, 1.0)
    settings = {"drafting": {"tree": "hybrid", "verifier": "hsd"}, "temperature": 0.3, "top_p": 0.8}
    (tmp_path / "mine_run.json").write_text(json.dumps({"settings": settings}))
    assert read_run(answers).about == About("mine", "ea_hsd", 0.3, 0.8)
    (tmp_path / "mine_run.json").write_text(json.dumps({"settings": settings | {"drafting": None}}))
    assert read_run(answers).about.is_baseline


def test_unreadable_settings_are_named_and_the_name_tells(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.with_name(run.stem + "_run.json").write_text("[]")
    assert read_run(run).about.temperature == 0.7
    assert "_run.json: not the settings of a run" in capsys.readouterr().err


def test_choices_of_a_question_are_taken_together(tmp_path: Path) -> None:
    answers = tmp_path / "a.jsonl"
    answers.write_text(answer_line("q", [TURNS[81], TURNS[82]]) + answer_line("r", [TURNS[82], TURNS[82]]))
    info_of(answers).write_text(
        info_line("q", TURNS[81], 0) + info_line("r", TURNS[82], 0) + info_line("q", TURNS[82], 1)
    )
    read = read_run(answers)
    assert read.questions == ("q", "r")
    assert read.accept_length.tolist() == [2, 0, 1, 3, 3]
    assert read.offsets.tolist() == [0, 4, 5]
    # Of r's second choice there is no info.
    assert read.new_tokens.tolist() == [13, 5]


def test_info_lines_without_ids_follow_the_answers(tmp_path: Path) -> None:
    answers = write_run(tmp_path / "a.jsonl", TURNS, ids=False)
    read = read_run(answers)
    assert read.questions == (81, 82)
    assert read.offsets.tolist() == [0, 3, 4]
    assert read.draft_time is None
    assert read.first_draft_time is None


@pytest.mark.parametrize("ids", [True, False])
def test_a_malformed_line_costs_its_question_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ids: bool
) -> None:
    answers = write_run(tmp_path / "a.jsonl", {81: TURNS[82], 82: TURNS[81], 83: TURNS[82]}, ids=ids)
    lines = info_of(answers).read_text().splitlines(keepends=True)
    info_of(answers).write_text(lines[0] + '{"accept_length": oops}\n' + lines[2])
    read = read_run(answers)
    assert read.questions == (81, 83)
    assert read.accept_length.tolist() == [3, 3]
    assert read.skipped == 1
    said = capsys.readouterr().err
    assert "a_info.jsonl, line 2: not valid JSON; skipped" in said
    assert "a.jsonl: malformed lines skipped: 1" in said


def test_a_line_cut_off_by_a_kill_is_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run.read_text()
    run.write_text(text[: len(text) - 40])
    read = read_run(run)
    assert read.questions == (81,)
    said = capsys.readouterr().err
    assert "line 2: cut off" in said
    assert "1 lines of info without an answer" in said


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("accept_length", [[2, 0.5], [1]], "'accept_length' holds something other than whole numbers"),
        ("accept_length", [[2, "0"], [1]], "'accept_length' holds something other than whole numbers"),
        ("accept_length", [[2, None], [1]], "'accept_length' holds something other than whole numbers"),
        ("accept_length", [[2, -1], [1]], "'accept_length' holds something below 0"),
        ("accept_length", [[2, 3], [1]], "'accept_length' is not below 'draft_length'"),
        ("accept_length", [[2**63 + 1, 2**63], [2**63]], "'accept_length' holds something below 0, or too large"),
        ("draft_length", [[10**12, 3], [2]], "'draft_length' is above 10000"),
        ("draft_length", [[10**30, 3], [2]], "'draft_length' holds something other than whole numbers"),
        ("accept_length", [[2, 0]], "different numbers of turns"),
        ("accept_length", 3, "'accept_length' is not a list of rounds for each turn"),
        ("tree_time", [[1.0], [1.0]], "'tree_time' and 'accept_length' have different numbers of rounds"),
        ("tree_time", [[1.0, [1.0]], [1.0]], "'tree_time' holds something other than numbers"),
        ("update_time", None, "'update_time' is not a list of rounds for each turn"),
        ("generate_time", ["5", 3.0], "'generate_time' holds something other than numbers"),
        ("question_id", [81], "'question_id' must be a number or a text"),
        ("choice_index", [0], "'choice_index' must be a whole number"),
    ],
)
def test_every_malformed_field_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], key: str, value: object, complaint: str
) -> None:
    lines = info_of(run).read_text().splitlines()
    info_of(run).write_text(json.dumps(json.loads(lines[0]) | {key: value}) + "\n" + lines[1] + "\n")
    assert read_run(run).questions == (82,)
    said = capsys.readouterr().err
    assert "_info.jsonl, line 1: " in said
    assert complaint in said


def test_many_malformed_lines_do_not_flood_the_screen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info_of(run).write_text(info_of(run).read_text() + "junk\n" * 1000)
    assert read_run(run).skipped == 1000
    assert len(capsys.readouterr().err.splitlines()) < 10


def test_only_rounds_of_one_draft_length(run: Path) -> None:
    read = only_rounds(read_run(run), 4)
    assert read.accept_length.tolist() == [2, 3]
    assert read.offsets.tolist() == [0, 1, 2]
    assert (read.gamma, read.rounds_read) == (4, 4)
    with pytest.raises(InputError, match="no round has draft length 7; there are 2, 3, 4"):
        only_rounds(read_run(run), 7)


def test_a_folder_holds_its_runs_in_the_order_of_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "m-temperature-0.0_baseline",
        "m-temperature-0.0_ea",
        "m-temperature-0.0_ea_hsd",
        "m-temperature-0.0_ea_chain_blockwise",
        "m-temperature-1.0_baseline",
        "m-temperature-10.0_baseline",
    ]
    for name in reversed(names):
        write_run(tmp_path / "deep" / f"{name}.jsonl", TURNS)
    (tmp_path / "deep" / "question.jsonl").write_text("{}\n")
    found = find_runs(tmp_path)
    assert [file.stem for file in found] == names
    again = read_runs([info_of(found[1]), found[0], tmp_path])
    assert [run.files.answers.stem for run in again] == [names[1], names[0], *names[2:]]
    monkeypatch.chdir(tmp_path)
    assert len(read_runs([Path("deep"), tmp_path])) == len(names)


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "lone.jsonl").write_text(run.read_text())
    for name in ("blank.jsonl", "blank_info.jsonl"):
        (tmp_path / name).write_text("")
    for name in ("foreign.jsonl", "foreign_info.jsonl"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00 not JSON\n[1]\n3\n")
    for path, complaint in (
        ("empty", "no runs there"),
        ("absent.jsonl", "no such file or folder"),
        ("lone.jsonl", "no lone_info.jsonl beside it"),
        ("blank.jsonl", "the file is empty"),
    ):
        with pytest.raises(InputError, match=complaint):
            find_runs(tmp_path / path)
    with pytest.raises(InputError, match="no question with both"):
        read_runs([tmp_path / "foreign.jsonl"])


def test_a_path_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 5000, "x" * 250 + ".jsonl"):
        with pytest.raises(InputError, match=r"cannot read .*: File name too long"):
            find_runs(tmp_path / name)
    # Its own name fits, that of the file beside it does not.
    (tmp_path / ("y" * 249 + ".jsonl")).write_text("{}")
    with pytest.raises(InputError, match=r"cannot read .*: File name too long"):
        find_runs(tmp_path / ("y" * 249 + ".jsonl"))


def test_what_is_no_run_in_a_folder_is_named_and_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.parent
    (folder / "question.jsonl").write_text('{"question_id": 81, "turns": ["?"]}\n')
    (folder / "alone.jsonl").write_text(run.read_text())
    (folder / "lone_info.jsonl").write_text(info_of(run).read_text())
    for name, answers, info in (
        ("unanswered", "", info_of(run).read_text()),
        ("undescribed", run.read_text(), ""),
        ("foreign", "no JSON\n", "[1]\n"),
    ):
        (folder / f"{name}.jsonl").write_text(answers)
        (folder / f"{name}_info.jsonl").write_text(info)
    (read,) = read_runs([folder])
    assert read.files.answers == run
    left_out = [line for line in capsys.readouterr().err.splitlines() if line.endswith("; left out")]
    assert [line.removeprefix(f"{folder}/").removesuffix("; left out") for line in left_out] == [
        "alone.jsonl: not a run, since there is no alone_info.jsonl beside it",
        "lone_info.jsonl: not a run, since there is no lone.jsonl beside it",
        "unanswered.jsonl: the file is empty",
        "undescribed_info.jsonl: the file is empty",
        "foreign.jsonl: no question with both its answer and its info (foreign_info.jsonl)",
    ]
    for file in (run, info_of(run)):
        file.unlink()
    with pytest.raises(InputError, match="none of its runs can be read"):
        read_runs([folder])


def test_a_folder_with_one_run_names_it(run: Path) -> None:
    assert find_run(run.parent) == find_run(info_of(run)) == run
    write_run(run.with_name("another.jsonl"), TURNS)
    with pytest.raises(InputError, match="2 runs are in this folder; name a file"):
        find_run(run.parent)


def test_labels_say_what_differs(tmp_path: Path) -> None:
    def label(*runs: tuple[str, About]) -> list[str]:
        return labels([(RunFiles.beside(tmp_path / path), about) for path, about in runs])

    assert label(("a/x.jsonl", About("m", "ea_hsd", 1.0, 1.0))) == ["HSD"]
    assert label(
        ("a/x.jsonl", About("m", "ea", 1.0, 1.0)), ("a/y.jsonl", About("m", "ea_hybrid_tokenwise", 1.0, 1.0))
    ) == ["EAGLE-3", "hybrid tree, tokenwise"]
    assert label(("a/x.jsonl", About("m", "ea", 0.0, 1.0)), ("b/x.jsonl", About("m", "ea", 1.0, 1.0))) == [
        "EAGLE-3 T=0.0",
        "EAGLE-3 T=1.0",
    ]
    same = About("m", "ea", 1.0, 1.0)
    assert label(("a/x.jsonl", same), ("b/x.jsonl", same)) == ["EAGLE-3 (a)", "EAGLE-3 (b)"]
    assert len(set(label(("a/x.jsonl", same), ("a/y.jsonl", same), ("b/a/y.jsonl", same)))) == 3


def test_reading_starts_without_torch() -> None:
    """What people read after a run must not wait for the libraries that made it."""
    code = (
        "import sys; import eagle.evaluation.stats, eagle.evaluation.speed, eagle.evaluation.equal; "
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
