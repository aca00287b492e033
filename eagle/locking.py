"""Keeping a second program from writing the same files: a lock file beside them, on whatever disk they are.

The lock is ``flock``'s: it holds between all programs that see the file system's locks, and ends with the program that
holds it, however that ends. Those are local disks for the programs of one machine, whatever containers and users they
run as, and between machines NFS, CephFS, GPFS and Lustre mounted with ``flock``. Mounts that keep locks to one machine
(Lustre's ``localflock``, NFS's ``local_lock``, many FUSE file systems) keep programs of one machine apart and no more.
Where a file system has no locks at all, the existence of a file is the lock: that holds between machines too, but a
program that was killed leaves it, and the message then says what to remove.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from eagle.errors import InputError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
LOCK, CREATED = ".lock", ".writing"


class BusyError(Exception):
    """Somebody else holds the lock.

    Attributes:
        advice: what to do beside waiting, to be put behind a message; empty where the lock ends by itself.
    """

    def __init__(self, advice: str = "") -> None:
        super().__init__(f"the lock is taken{advice}")
        self.advice = advice


@contextlib.contextmanager
def alone(folder: Path, name: str, what: str, otherwise: str) -> Iterator[None]:
    """Hold the lock of a name in a folder, which is made if need be, and say so where that cannot be.

    Args:
        folder: where the lock file goes.
        name: of what is locked.
        what: another program would be doing, as "run is writing a.jsonl".
        otherwise: what to do instead of waiting for it, as "choose another --out".

    Raises:
        InputError: another program holds it, or the folder cannot be written to.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive(folder, name))
        except BusyError as busy:
            raise InputError(f"another {what}{busy.advice}; wait for it, or {otherwise}") from None
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error}") from error
        yield


@contextlib.contextmanager
def exclusive(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a name in a folder, without waiting; nothing of it is left behind.

    Args:
        folder: where the lock file goes; it exists.
        name: of what is locked.

    Raises:
        BusyError: another program holds it, or another part of this one.
        OSError: no file can be made there.
    """
    lock = folder / f".{name}{LOCK}"
    held = _locked(lock) if fcntl is not None else None
    if held is None:
        with _created(folder / f".{name}{CREATED}"):
            yield
        return
    try:
        yield
    finally:
        # While it is still held: whoever has opened the file by now finds it gone and makes another.
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(held)


def _locked(lock: Path) -> int | None:
    """A descriptor that holds the lock; None where the file system has none."""
    while True:
        descriptor = _opened(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(lock, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in NO_LOCKS:
                raise
            lock.unlink(missing_ok=True)
            return None
        os.close(descriptor)


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not lock.exists():
            raise
        # Another user's, in a folder that both may write to.
        return os.open(lock, os.O_RDONLY)


def _is_still_there(lock: Path, descriptor: int) -> bool:
    """Whether a locked file is the one that the next program would open: its last holder has removed it otherwise."""
    mine = os.fstat(descriptor)
    try:
        return mine.st_nlink > 0 and os.path.samestat(mine, lock.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _created(file: Path) -> Iterator[None]:
    """A lock that is there as long as its file."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        with contextlib.suppress(OSError):
            raise BusyError(f" (process {file.read_text(encoding='utf-8')}; if it is gone, remove {file})") from None
        raise BusyError(f" (if nobody writes there, remove {file})") from None
    try:
        os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
        os.close(descriptor)
        yield
    finally:
        file.unlink(missing_ok=True)
