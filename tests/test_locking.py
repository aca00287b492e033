"""Locks beside files: who waits for whom, and what stays behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eagle.errors import InputError
from eagle.evaluation.answering.records import RunFiles
from eagle.locking import BusyError, exclusive

ANOTHER = (
    "import sys; from pathlib import Path; from eagle.errors import InputError; "
    "from eagle.evaluation.answering.records import RunFiles\n"
    "try:\n with RunFiles.to_write(Path(sys.argv[1])).locked(): print('got it')\n"
    "except InputError as error: print(error)"
)


def another(path: Path | str, folder: Path, cache: Path) -> str:
    """What another program says that would write to a file."""
    return subprocess.run(
        [sys.executable, "-c", ANOTHER, str(path)],
        cwd=folder,
        env=os.environ | {"EAGLE_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_programs_with_different_caches_do_not_write_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    answers = folder / "a.jsonl"
    (tmp_path / "linked").symlink_to(folder)
    with RunFiles.to_write(answers).locked():
        (tmp_path / "link.jsonl").symlink_to(answers)
        for path in (answers, "real/a.jsonl", "linked/a.jsonl", "link.jsonl"):
            said = another(path, tmp_path, tmp_path / "other cache")
            assert said.startswith("another run is writing ")
            assert "wait for it, or choose another --folder_id" in said
        assert another("real/b.jsonl", tmp_path, tmp_path / "other cache") == "got it\n"
    assert another("linked/a.jsonl", tmp_path, tmp_path / "cache") == "got it\n"
    assert list(folder.iterdir()) == []


def test_a_link_is_written_where_it_leads(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "r.jsonl"
    real.parent.mkdir()
    (tmp_path / "a.jsonl").symlink_to(real)
    assert RunFiles.to_write(tmp_path / "a.jsonl") == RunFiles.beside(real)


def test_the_lock_of_a_program_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    holding = "import os; from pathlib import Path; from eagle.locking import exclusive\n"
    holding += "with exclusive(Path('.'), 'a'): os.kill(os.getpid(), 9)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", holding], cwd=tmp_path, env=environment, check=False).returncode == -9
    assert [file.name for file in tmp_path.iterdir()] == [".a.lock"]
    with exclusive(tmp_path, "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_never_two_at_a_time_although_the_lock_file_comes_and_goes(tmp_path: Path) -> None:
    inside, entered, overlaps = [], [], []

    def contend(name: int) -> None:
        for _ in range(300):
            try:
                with exclusive(tmp_path, "a"):
                    inside.append(name)
                    entered.append(name)
                    overlaps.extend(inside[1:])
                    inside.remove(name)
            except BusyError:
                continue

    threads = [threading.Thread(target=contend, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered
    assert overlaps == []
    assert list(tmp_path.iterdir()) == []


def test_where_a_file_system_has_no_locks_a_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    files = RunFiles.to_write(tmp_path / "a.jsonl")
    with files.locked(), pytest.raises(InputError) as refused, files.locked():
        pass
    left = tmp_path / ".a.jsonl.writing"
    assert f"(process {os.getpid()} on " in str(refused.value)
    assert f"if it is gone, remove {left})" in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    # A program that was killed leaves the file, and only the user can tell.
    left.write_text("1 on another machine")
    with pytest.raises(InputError, match="process 1 on another machine; if it is gone"), files.locked():
        pass
