from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eagle.errors import InputError
from eagle.threads import apart

# A page or a server: what loads is gone, and what runs has the only workers. Counted, since what it is for is time.
WORKERS = """
import os, sys, threading, torch
from eagle.threads import apart
def work():
    return torch.ones(512, 512) @ torch.ones(512, 512) + torch.ones(2**20).sum()
def tasks():
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(4)
before = tasks()
(apart if sys.argv[1] == "apart" else lambda do: do())(work)
seen = []
thread = threading.Thread(target=lambda: seen.append((work(), tasks() - before - 1)))
thread.start()
thread.join()
print(seen[0][1])
"""


def test_what_is_done_apart_comes_back_and_its_thread_is_gone() -> None:
    before = threading.active_count()
    where = apart(threading.current_thread)
    assert where is not threading.current_thread()
    assert not where.is_alive()
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [InputError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_fails_apart_fails_here(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        apart(fail)
    assert raised.value is error


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are not counted here")
def test_workers_of_what_loads_are_gone() -> None:
    counts = [
        int(subprocess.run([sys.executable, "-c", WORKERS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("apart", "here")
    ]
    assert counts[0] < counts[1]
