"""The composition root of the one-command stack.

1. Take the data directory; a second stack on it is refused.
2. Prepare the models that are not prepared yet.
3. Start Valkey, and make sure that an API key exists.
4. Start gateway and worker side by side, and wait until the gateway says that everything is ready.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Self

import httpx

from deploy.local.errors import LaunchError
from deploy.local.keys import make_sure_of_a_key, open_key_store, passing_key, refuse_a_weak_key
from deploy.local.logs import Log
from deploy.local.settings import LocalSettings
from deploy.local.supervisor import Child, Supervisor
from services.adapters.directory_lock import DirectoryLock, DirectoryTakenError
from services.adapters.embedded_valkey import EmbeddedValkey, ValkeyUnavailableError
from services.adapters.parent_death import dies_with_parent

PROJECT_ROOT = Path(__file__).resolve().parents[2]
QUIETLY = ("--without-gossip", "--without-mingle", "--without-heartbeat")
WORKER = (sys.executable, "-m", "celery", "-q", "-A", "worker.app:app", "worker", "-P", "threads", *QUIETLY)
GATEWAY = (sys.executable, "-m", "api")
PREPARE = (sys.executable, "-m", "worker.cli", "prepare")
SPARE_GRACE_S = 10.0
"""What a process may take to end beyond the time that its settings give it."""


class Stack:
    """Valkey, worker and gateway, up for the length of a `with` block. Entering and leaving take seconds."""

    def __init__(self, settings: LocalSettings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._run_dir = settings.home / "run"
        self._open = ExitStack()
        self._redis_url = ""

    def __enter__(self) -> Self:
        """Raises LaunchError when the stack cannot run."""
        with ExitStack() as opening:
            self._start(opening)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def issue_key(self, name: str, lifetime: timedelta) -> str:
        """An API key, void after `lifetime` and forgotten when the stack ends."""
        store = self._open.enter_context(open_key_store(self._redis_url))
        return self._open.enter_context(passing_key(store, name, lifetime))

    def _start(self, opening: ExitStack) -> None:
        settings = self._settings
        refuse_a_weak_key(settings.bootstrap_key)
        lock = self._take_home(opening)
        _refuse_a_taken_port(settings.host, settings.port)
        self._prepare(lock)
        valkey = EmbeddedValkey(settings.home / "valkey", self._run_dir, maxmemory_bytes=settings.valkey_maxmemory)
        try:
            opening.enter_context(valkey)
        except (DirectoryTakenError, ValkeyUnavailableError) as error:
            raise LaunchError(str(error)) from error
        self._redis_url = valkey.url

        supervisor = opening.enter_context(Supervisor(self._log))
        supervisor.keep(self._child("valkey", valkey.command, lock.fd, valkey.lock_fd))
        supervisor.wait_until(lambda: None if valkey.answers() else "Valkey gives no answer", settings.start_timeout_s)
        with open_key_store(valkey.url) as store:
            make_sure_of_a_key(store, settings.bootstrap_key, settings.home, sys.stdout)
        supervisor.keep(self._child("gateway", GATEWAY, lock.fd, grace_s=settings.shutdown_s))
        supervisor.keep(self._child("worker", WORKER, lock.fd, grace_s=settings.drain_s))
        supervisor.wait_until(lambda: _why_not_ready(f"{settings.base_url}/readyz"), settings.start_timeout_s)

    def _take_home(self, opening: ExitStack) -> DirectoryLock:
        """Locks the data directory; the children inherit the lock, so that no other stack meets one of them."""
        lock = DirectoryLock(self._run_dir)
        try:
            return opening.enter_context(lock)
        except DirectoryTakenError as taken:
            where = f"{self._settings.home} (process {taken.pid or 'unknown'})"
            raise LaunchError(f"lensd already runs on {where}: stop it, or set another LENSD_HOME") from taken

    def _prepare(self, lock: DirectoryLock) -> None:
        """Converts the models that are not in the store yet; takes well under a second when all are."""
        with subprocess.Popen(  # noqa: S603 - the command line is ours
            dies_with_parent(PREPARE),
            cwd=PROJECT_ROOT,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fd,),
            start_new_session=True,
            text=True,
            errors="replace",
        ) as preparation:
            assert preparation.stdout is not None
            try:
                for line in preparation.stdout:
                    self._log("prepare", line.rstrip())
            except BaseException:
                preparation.kill()
                raise
        if preparation.returncode != 0:
            raise LaunchError("the models could not be prepared: see the lines of `prepare`")

    def _child(self, name: str, argv: Sequence[str], *pass_fds: int, grace_s: float = 0.0) -> Child:
        return Child(
            name=name,
            argv=tuple(argv),
            cwd=PROJECT_ROOT,
            env=self._environment(),
            pass_fds=pass_fds,
            pid_file=self._run_dir / f"{name}.pid",
            grace_s=grace_s + SPARE_GRACE_S,
        )

    def _environment(self) -> dict[str, str]:
        """What the children see: the launcher's own environment, with its settings made definite."""
        settings = self._settings
        environment = {name: value for name, value in os.environ.items() if name != "LENSD_BOOTSTRAP_KEY"}
        # torch's threads spin while they wait for each other; on busy cores a first job then took 13 s instead of 3.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        environment |= {
            "LENSD_HOME": str(settings.home),
            "LENSD_HOST": settings.host,
            "LENSD_PORT": str(settings.port),
            "LENSD_REDIS_URL": self._redis_url,
            "PYTHONUNBUFFERED": "1",
        }
        if settings.catalogue is not None:
            environment["LENSD_CATALOGUE"] = str(settings.catalogue)
        return environment


def _refuse_a_taken_port(host: str, port: int) -> None:
    """Says so now, rather than after the models are loaded and in the gateway's words."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise LaunchError(
            f"cannot listen on {host} port {port} ({error.strerror}): set LENSD_PORT to a free port"
        ) from error


def _why_not_ready(url: str) -> str | None:
    try:
        answer = httpx.get(url, timeout=2, trust_env=False)
    except httpx.TransportError as error:
        return f"{url} cannot be reached: {error}"
    return None if answer.is_success else f"{url} answers {answer.status_code}: {answer.text[:1000]}"
