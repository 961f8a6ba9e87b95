"""The processes of one deployment, each of which a drill may kill, freeze and start again; nobody else sees to them.

Valkey, one gateway and any number of workers, started as the one-command stack starts them, without its supervisor:
what a drill killed stays dead until the drill says otherwise.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from redis import Redis
from redis.exceptions import RedisError

from deploy.local.stack import GATEWAY, PROJECT_ROOT, WORKER
from services.adapters.embedded_valkey import EmbeddedValkey, free_port
from services.adapters.parent_death import dies_with_parent
from services.tenants.keys import Scope, new_key
from tests.processes import eventually
from tests.stack.harness import lend_prepared_models

START_S = 120.0
END_S = 20.0


class Process:
    """One process and its successors; `log` is what all of them have printed."""

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log_file: Path, spawner: ThreadPoolExecutor
    ) -> None:
        self.name = name
        self.pids: list[int] = []
        self._argv = argv
        self._env = env
        self._log_file = log_file
        self._spawner = spawner
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self.pids[-1]

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def start(self, environment: Mapping[str, str] | None = None, *, pass_fds: Sequence[int] = ()) -> None:
        """Start it, or its successor; `environment` is what this one finds beside the plant's."""
        # From a thread that lives as long as the plant: the kernel ends the process with the thread that started it.
        self._process = self._spawner.submit(self._spawn, pass_fds, {**self._env, **(environment or {})}).result()
        self.pids.append(self._process.pid)

    def _spawn(self, pass_fds: Sequence[int], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with self._log_file.open("ab") as log:
            return subprocess.Popen(
                dies_with_parent(self._argv),
                cwd=PROJECT_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )

    def kill(self) -> int:
        """SIGKILL; the process id that was."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        return self.pid

    def freeze(self) -> None:
        """SIGSTOP; on a busy machine a thread may run on for a while, so this waits until all stand still."""
        os.kill(self.pid, signal.SIGSTOP)
        if not eventually(lambda: self._thread_states() <= {"T"}, END_S):
            raise AssertionError(f"{self.name} does not stand still: {self._thread_states()}")

    def _thread_states(self) -> set[str]:
        """As /proc has them; none elsewhere than on Linux."""
        stats = (stat.read_text() for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"))
        return {stat.rpartition(")")[2].split()[0] for stat in stats}

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM, and SIGKILL when that takes long."""
        if self._process is None or self._process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            self.thaw()
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def open_files(self) -> int:
        return int(psutil.Process(self.pid).num_fds())

    def threads(self) -> int:
        return int(psutil.Process(self.pid).num_threads())


@dataclass
class Plant:
    """A deployment that answers."""

    home: Path
    base_url: str
    api_key: str
    valkey: EmbeddedValkey
    server: Process
    gateway: Process
    workers: list[Process] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def client(self, timeout_s: float = 90) -> httpx.Client:
        """An HTTP client with the plant's key; the caller closes it."""
        return httpx.Client(base_url=self.base_url, headers=self.headers, timeout=timeout_s, trust_env=False)

    def redis(self) -> Redis:
        """A way into the store past the product, for looking and for tampering; the caller closes it."""
        return Redis.from_url(self.valkey.url, socket_timeout=5)

    def start_server(self) -> None:
        self.server.start(pass_fds=[self.valkey.lock_fd])
        if not eventually(self.valkey.answers, START_S):
            raise AssertionError(f"Valkey gives no answer:\n{self.server.log}")

    def start_gateway(self) -> None:
        self.gateway.start()
        self.wait_for_gateway()

    def wait_for_gateway(self) -> None:
        if not eventually(lambda: self._answers("/livez"), START_S):
            raise AssertionError(f"the gateway does not answer:\n{self.gateway.log[-4000:]}")

    def start_workers(self) -> None:
        """Start all of them, and wait until they listen."""
        for worker in self.workers:
            worker.start()
        self.wait_for_workers()

    def wait_for_workers(self) -> None:
        if not eventually(lambda: all(self.serves(worker) for worker in self.workers), START_S):
            raise AssertionError("a worker does not serve:\n" + "\n".join(w.log[-4000:] for w in self.workers))

    def freeze(self, *workers: Process) -> None:
        """Freeze them, and see what they had asked of the store before answered: they are told, but do not know yet."""
        for worker in workers:
            worker.freeze()
        with self.redis() as redis:
            redis.ping()  # after all that lay in the server's sockets

    @contextmanager
    def frozen_workers(self) -> Iterator[None]:
        """While all workers are frozen: none claims a job."""
        self.freeze(*self.workers)
        try:
            yield
        finally:
            for worker in self.workers:
                worker.thaw()

    def serves(self, worker: Process) -> bool:
        """Whether the worker has announced itself and has loaded what it serves."""
        with suppress(RedisError), self.redis() as redis:
            for key in redis.scan_iter(f"lensd:worker:*-{worker.pid}-*"):
                state = redis.get(key)
                return isinstance(state, bytes) and b'"loaded"' in state and b'"loading"' not in state
        return False

    def name_of(self, worker: Process) -> str:
        """The name under which the worker claims."""
        with self.redis() as redis:
            (key,) = redis.scan_iter(f"lensd:worker:*-{worker.pid}-*")
            return str(key.decode().removeprefix("lensd:worker:"))

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(self.base_url + path, timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def running_plant(home: Path, store: Path, *, workers: int = 1, **environment: str) -> Iterator[Plant]:
    """A deployment on `home` with the prepared models of `store`, its workers ready; it has ended when the block has.

    `environment` is what its processes find beside the defaults, as `LENSD_<NAME>`.
    """
    lend_prepared_models(store, home)
    logs = home / "logs"
    logs.mkdir(parents=True)
    port, (api_key, _) = free_port(), new_key("chaos", "chaos", tuple(Scope))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LENSD_")}
    with (
        EmbeddedValkey(home / "valkey", home / "run") as valkey,
        ThreadPoolExecutor(1, "spawner") as spawner,
    ):
        env = inherited | {
            "LENSD_HOME": str(home),
            "LENSD_CATALOGUE": str(PROJECT_ROOT / "deploy" / "catalogue.toml"),
            "LENSD_REDIS_URL": valkey.url,
            "LENSD_PORT": str(port),
            "LENSD_BOOTSTRAP_KEY": api_key,
            "LENSD_THREADS": str(max(1, (os.cpu_count() or 1) // workers)),
            "OMP_WAIT_POLICY": "passive",
            "PYTHONUNBUFFERED": "1",
        } | environment  # fmt: skip

        def process(name: str, argv: Sequence[str]) -> Process:
            return Process(name, argv, env, logs / f"{name}.log", spawner)

        plant = Plant(
            home,
            f"http://127.0.0.1:{port}",
            api_key,
            valkey,
            process("valkey", valkey.command),
            process("gateway", GATEWAY),
            [process(f"worker-{number}", WORKER) for number in range(1, workers + 1)],
        )
        try:
            plant.start_server()
            plant.start_gateway()
            plant.start_workers()
            yield plant
        finally:
            for part in (*plant.workers, plant.gateway, plant.server):
                part.end()
