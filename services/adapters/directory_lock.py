"""A lock on a directory, held by a process and by the children it lends the lock to."""

import fcntl
import os
import time
from pathlib import Path
from typing import Self

HOLDER_DIES_WITHIN_S = 5.0


class DirectoryTakenError(Exception):
    """Another process holds the directory; `pid` is the one that took it (None when it left no note)."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        self.directory = directory
        self.pid = pid
        super().__init__(f"{directory} is in use by process {pid or 'unknown'}")


class DirectoryLock:
    """An exclusive `flock` on `<directory>/lock`, whose content is the holder's process id.

    The lock belongs to the open file, so a child that inherits `fd` keeps it: it is free only when the holder and all
    such children have ended, which the kernel sees to after any crash.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """The descriptor that carries the lock, for `pass_fds`. Raises RuntimeError when the lock is not held."""
        if self._fd is None:
            raise RuntimeError(f"the lock on {self._directory} is not held")
        return self._fd

    def acquire(self) -> None:
        """Takes the lock; waits a moment when its last holder is dead and only that one's children are still ending.

        Raises DirectoryTakenError when another process holds it.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up_at = time.monotonic() + HOLDER_DIES_WITHIN_S
        while not _try_lock(fd):
            pid = _noted_pid(fd)
            if _is_alive(pid) or time.monotonic() > give_up_at:
                os.close(fd)
                raise DirectoryTakenError(self._directory, pid)
            time.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Gives the holder's share of the lock up."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _noted_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
