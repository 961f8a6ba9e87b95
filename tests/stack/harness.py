"""Runs the whole stack as its users do: `python -m deploy.local up` in a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from services.adapters.embedded_valkey import free_port
from services.adapters.parent_death import dies_with_parent
from services.tenants.keys import Scope, new_key
from tests.processes import eventually, has_ended

PROJECT_ROOT = Path(__file__).parents[2]
CHILDREN = ("valkey", "gateway", "worker")
READY_TIMEOUT_S = 240
END_TIMEOUT_S = 60


@dataclass
class RunningStack:
    """A stack that answers requests; `output` is what its launcher has printed so far."""

    base_url: str
    api_key: str
    home: Path
    launcher: "subprocess.Popen[bytes]"
    _log_file: Path = field(repr=False)

    @property
    def output(self) -> str:
        return self._log_file.read_text(errors="replace")

    def client(self, timeout_s: float = 60) -> httpx.Client:
        """An HTTP client that carries the stack's API key; the caller closes it."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout_s, trust_env=False)

    def pid(self, child: str) -> int:
        """The process id of `valkey`, `gateway` or `worker`, as it runs now."""
        return int((self.home / "run" / f"{child}.pid").read_text())

    def pids(self) -> dict[str, int]:
        return {child: self.pid(child) for child in CHILDREN}

    def kill(self, child: str) -> int:
        """Kills a child with SIGKILL; its process id."""
        pid = self.pid(child)
        os.kill(pid, signal.SIGKILL)
        return pid

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/readyz", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False


def lend_prepared_models(store: Path, home: Path) -> None:
    """Gives `home` the prepared models and SAEs of another data directory, as hard links where that works."""
    for kind in ("models", "saes"):
        if (store / kind).is_dir() and not (home / kind).exists():
            shutil.copytree(store / kind, home / kind, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def launch(home: Path, log_file: Path, *command: str, **environment: str) -> "subprocess.Popen[bytes]":
    """Starts the launcher on `home`, its lines going to `log_file`; it dies with the thread that called this."""
    home.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LENSD_")}
    with log_file.open("wb") as log:
        return subprocess.Popen(
            dies_with_parent([sys.executable, "-m", "deploy.local", *(command or ("up",))]),
            cwd=PROJECT_ROOT,
            env=inherited | {"LENSD_HOME": str(home), "LENSD_THREADS": "2"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def running_stack(home: Path, store: Path, **environment: str) -> Iterator[RunningStack]:
    """A stack on `home` with the prepared models of `store`, ready to serve; it has ended when the block has."""
    lend_prepared_models(store, home)
    log_file = home / "launcher.log"
    api_key, _ = new_key("tests", "tests", tuple(Scope))
    port = free_port()
    settings = {"LENSD_PORT": str(port), "LENSD_BOOTSTRAP_KEY": api_key} | environment
    launcher = launch(home, log_file, **settings)
    stack = RunningStack(f"http://127.0.0.1:{port}", settings["LENSD_BOOTSTRAP_KEY"], home, launcher, log_file)
    try:
        eventually(lambda: launcher.poll() is not None or "ready in" in stack.output, READY_TIMEOUT_S)
        if launcher.poll() is not None or "ready in" not in stack.output:
            raise AssertionError(f"the stack did not get ready:\n{stack.output}")
        yield stack
    finally:
        end(launcher)


def end(launcher: "subprocess.Popen[bytes]") -> None:
    """Ends a launcher, by force when it will not end by itself; its children die with it."""
    launcher.terminate()
    try:
        launcher.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()


def all_end(pids: dict[str, int], within_s: float = 10) -> bool:
    """Whether every one of these processes ends in time."""
    return eventually(lambda: all(has_ended(pid) for pid in pids.values()), within_s)
