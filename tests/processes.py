"""Processes that end as a test wants it, at a point of their work and not of time, so however busy the machine is.

They come from a server that has imported the slow packages once.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["eagle.evaluation.sweep", "eagle.train.__main__"])


def run_until_killed(file: Path, lines: int, program: Callable[..., object], *arguments: Any) -> None:
    """Run a function in a process that is killed where it would append to a file that has so many lines.

    Args:
        file: of lines; shards of one name but for digits count as one, ``*`` stands for those.
        lines: when it is killed; those after are never written.
        program: defined in a module.
        arguments: for it.
    """
    process = FORKS.Process(target=_dying, args=(file, lines, dict(os.environ), program, arguments))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _dying(
    file: Path, lines: int, environment: dict[str, str], program: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event != "open" or "a" not in str(details[1]):
            return
        if Path(str(details[0])).match(file.name) and written(file) >= lines:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    program(*arguments)


def run_on_a_full_disk(size: int, program: Callable[..., int], *arguments: Any) -> tuple[int, str]:
    """Run a function in a process whose files may not grow beyond so many bytes; what it returns, and its errors.

    Args:
        size: of a file, at most.
        program: defined in a module.
        arguments: for it.
    """
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_limited, args=(there, size, dict(os.environ), program, arguments))
    process.start()
    there.close()
    status, errors = here.recv()
    process.join()
    return status, errors


def run_together(count: int, program: Callable[..., int], *arguments: Any) -> list[tuple[int, str]]:
    """Run a function in processes that know of each other as a launcher of torch makes them; what each returns, and
    its errors.

    Args:
        count: of processes.
        program: defined in a module.
        arguments: for it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    together = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **loopback}
    processes, ends = [], []
    for rank in map(str, range(count)):
        here, there = FORKS.Pipe(duplex=False)
        environment = {**os.environ, **together, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(FORKS.Process(target=_reporting, args=(there, environment, program, arguments)))
        processes[-1].start()
        there.close()
        ends.append(here)
    done = [end.recv() for end in ends]
    for process in processes:
        process.join()
    return done


def _limited(
    there: Connection, size: int, environment: dict[str, str], program: Callable[..., int], arguments: tuple[Any, ...]
) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    _reporting(there, environment, program, arguments)


def _reporting(
    there: Connection, environment: dict[str, str], program: Callable[..., int], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        status = program(*arguments)
    there.send((status, errors.getvalue()))


def written(file: Path) -> int:
    """Lines of a file, or of all shards that its name stands for."""
    return sum(shard.read_bytes().count(b"\n") for shard in file.parent.glob(file.name))
