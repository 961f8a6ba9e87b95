"""Keeps child processes running: starts them, passes their lines on, starts again what crashed, and ends them in order.

Each child has a thread of its own that starts it and waits for it. That thread lives as long as the child, as the
parent-death signal asks for, so nothing outlives the launcher, not even after its kill -9.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from deploy.local.errors import LaunchError
from deploy.local.logs import Log
from services.adapters.parent_death import dies_with_parent

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 10.0
HEALTHY_AFTER_S = 30.0
STARTS_BEFORE_GIVING_UP = 3
LAST_LINES_S = 2.0


@dataclass(frozen=True)
class Child:
    """A process to keep running."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(repr=False)
    pass_fds: tuple[int, ...] = ()
    pid_file: Path | None = None
    grace_s: float = 10.0
    """Seconds between being asked to end (SIGTERM) and being killed."""


class Supervisor:
    """The children of one stack. Leaving it ends them, the last one started first."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._keepers: list[_Keeper] = []

    def keep(self, child: Child) -> None:
        """Starts `child`, and starts it again whenever it ends by itself."""
        keeper = _Keeper(child, self._log)
        self._keepers.append(keeper)
        keeper.start()

    def wait_until(self, why_not: Callable[[], str | None], timeout_s: float) -> None:
        """Waits until `why_not` has nothing to object any more.

        Raises LaunchError after `timeout_s`, or as soon as a child has ended several times over.
        """
        give_up_at = time.monotonic() + timeout_s
        while (reason := why_not()) is not None:
            for keeper in self._keepers:
                if keeper.crashes >= STARTS_BEFORE_GIVING_UP:
                    raise LaunchError(f"{keeper.child.name} ended {keeper.crashes} times at its start: see its lines")
            if time.monotonic() > give_up_at:
                raise LaunchError(f"not ready after {timeout_s:.0f} s: {reason}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the children, the last one started first, each with its grace; an interrupt kills what is left."""
        try:
            for keeper in reversed(self._keepers):
                keeper.stop()
        finally:
            for keeper in self._keepers:
                keeper.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Keeper(threading.Thread):
    """Runs one child again and again, until told to stop."""

    def __init__(self, child: Child, log: Log) -> None:
        super().__init__(name=f"keeper of {child.name}", daemon=True)
        self.child = child
        self.crashes = 0
        """How often in a row the child ended soon after its start."""
        self._log = log
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        while (process := self._start()) is not None:
            started_at = time.monotonic()
            self._follow(process)
            if self._stopping.is_set():
                return
            healthy = time.monotonic() - started_at > HEALTHY_AFTER_S
            self.crashes = 1 if healthy else self.crashes + 1
            backoff_s = min(FIRST_BACKOFF_S * 2 ** (self.crashes - 1), LONGEST_BACKOFF_S)
            self._say(f"ended unasked ({_ending(process.returncode)}): starting it again in {backoff_s:g} s")
            self._stopping.wait(backoff_s)

    def stop(self) -> None:
        """Asks the child to end, waits for its grace, then kills it."""
        process = self._forbid_restart()
        if process is not None and process.poll() is None:
            process.terminate()
            self.join(self.child.grace_s)
            if self.is_alive():
                self._say(f"still ran {self.child.grace_s:g} s after it was asked to end: killing it")

    def kill(self) -> None:
        """Ends the child, and whatever it started, at once."""
        process = self._forbid_restart()
        if process is not None and process.poll() is None:
            process.kill()
        self.join()

    def _forbid_restart(self) -> "subprocess.Popen[bytes] | None":
        with self._starting:
            self._stopping.set()
            return self._process

    def _start(self) -> "subprocess.Popen[bytes] | None":
        child = self.child
        with self._starting:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(  # noqa: S603 - the command line is ours
                dies_with_parent(child.argv),
                cwd=child.cwd,
                env=dict(child.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=child.pass_fds,
                # A group of its own: Ctrl-C reaches the launcher alone, and leftovers can be ended with the child.
                start_new_session=True,
            )
        if child.pid_file is not None:
            child.pid_file.write_text(f"{self._process.pid}\n")
        return self._process

    def _follow(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        pump = threading.Thread(target=self._pass_on, args=(process.stdout,), daemon=True)
        pump.start()
        process.wait()
        _kill_group(process.pid)
        pump.join(LAST_LINES_S)
        if self.child.pid_file is not None:
            self.child.pid_file.unlink(missing_ok=True)

    def _pass_on(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                self._log(self.child.name, line.decode(errors="replace").rstrip())

    def _say(self, what: str) -> None:
        self._log("lensd", f"{self.child.name} {what}")


def _kill_group(pid: int) -> None:
    """Ends what a child that has ended left running in its process group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
