"""Fetching and converting: pinned, once, complete or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagle import assets
from eagle.data.questions import load_questions
from tests.wheels import write_wheel


def wheel_with(folder: Path, asset: assets.WheelMember, contents: bytes) -> None:
    """A wheel that pip takes for the asset's, in a folder that pip is told to look in."""
    name, _, version = asset.requirement.partition("==")
    write_wheel(folder, name, version, {asset.member: contents})


@pytest.fixture
def only_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees one local folder and no index; the cache is empty."""
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def test_nothing_reachable_says_what_to_put_where(only_this_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "QUESTIONS", only_this_machine / "question.jsonl")
    with pytest.raises(
        ValueError, match=r"put FastChat's MT-Bench question.jsonl at .*question.jsonl, or name"
    ) as caught:
        assets.mt_bench_questions()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="--base-model-path and --ea-model-path"):
        assets.base_model()


def test_a_wheel_without_the_file_is_explained(only_this_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "QUESTIONS", only_this_machine / "question.jsonl")
    other = assets.WheelMember(assets.MT_BENCH.requirement, "something/else.txt", assets.MT_BENCH.sha256)
    wheel_with(only_this_machine, other, b"")
    with pytest.raises(ValueError, match="came without"):
        assets.mt_bench_questions()


def test_a_file_put_there_by_hand_is_taken(only_this_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "QUESTIONS", only_this_machine / "question.jsonl")
    assets.QUESTIONS.write_text('{"question_id": 1, "turns": ["Hello"]}\n')
    assert [question.turns for question in load_questions(assets.mt_bench_questions())] == [("Hello",)]


def test_other_contents_than_pinned_are_not_used(only_this_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "QUESTIONS", only_this_machine / "question.jsonl")
    wheel_with(only_this_machine, assets.MT_BENCH, b'{"question_id": 1, "turns": ["tampered"]}\n')
    with pytest.raises(ValueError, match="not the pinned 119565adbab82227"):
        assets.mt_bench_questions()
    assert not list((only_this_machine.parent / "cache").rglob("question.jsonl"))


@pytest.mark.network
def test_a_package_that_cannot_be_written_to_leaves_them_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "QUESTIONS", tmp_path / "file" / "mt_bench" / "question.jsonl")
    assert len(load_questions(assets.mt_bench_questions())) == 80


def test_an_unwritable_cache_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="EAGLE_CACHE chooses another place"):
        assets.base_model()


SLOW_MAKE = """
import sys, time
from pathlib import Path
from eagle import assets
def make(folder):
    with open(sys.argv[2], "a") as log: log.write("made\\n")
    (folder / "first").write_text("x"); time.sleep(float(sys.argv[3])); (folder / "second").write_text("x")
print(sorted(file.name for file in assets._once(Path(sys.argv[1]), make).iterdir()))
"""


def start(target: Path, log: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SLOW_MAKE, str(target), str(log), str(seconds)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"EAGLE_CACHE": str(target.parent)}
    )


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    processes = [start(target, log, 1.0) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["['first', 'second']\n"] * 2
    assert log.read_text() == "made\n"


def test_a_kill_half_way_leaves_nothing_broken(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    process = start(target, log, 3600.0)
    while process.poll() is None and not log.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    assert start(target, log, 0.0).communicate()[0] == "['first', 'second']\n"
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == ["model"]


@pytest.mark.network
def test_the_real_questions_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(assets, "QUESTIONS", tmp_path / "package" / "question.jsonl")
    file = assets.mt_bench_questions()
    assert file == assets.QUESTIONS
    assert [inside.name for inside in file.parent.iterdir()] == ["question.jsonl"]
    questions = load_questions(file)
    assert len(questions) == 80
    assert all(len(question.turns) == 2 for question in questions)
