"""Gateway processes on a real server and a tiny catalogue; workers are threads of the test, which compute nothing."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from services.adapters.embedded_valkey import free_port
from services.adapters.parent_death import dies_with_parent
from services.adapters.redis_client import make_client
from services.adapters.redis_jobs import RedisJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import Size
from services.tenants.keys import Scope, new_key
from tests.api.catalogue import write_catalogue
from tests.processes import eventually
from tests.services.adapters.valkey import Server, valkey_server
from tests.services.jobs.samples import DONE

PROJECT_ROOT = Path(__file__).parents[2]


class Gateway:
    """One gateway process, which can be killed and started again."""

    def __init__(self, home: Path, log: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._home = home
        self._log = log
        self._environment = environment | {"LENSD_PORT": str(self.port), "LENSD_HOME": str(home)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LENSD_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                dies_with_parent([sys.executable, "-m", "api"]),
                cwd=PROJECT_ROOT,
                env=inherited | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        assert eventually(self._answers, 60), self.output

    def kill(self) -> None:
        """With SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/livez", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False


class Deployment:
    """A server, its job store as workers see it, and gateways that share them."""

    def __init__(self, folder: Path, server: Server, environment: dict[str, str]) -> None:
        self.server, url = server, server.url
        self.api_key, _ = new_key("tests", "tests", tuple(Scope))
        self.redis = make_client(url, patient=True)
        self.store = RedisJobStore(self.redis, JobPolicy())
        self.gateways: list[Gateway] = []
        self._folder = folder
        self._environment = environment | {"LENSD_REDIS_URL": url, "LENSD_BOOTSTRAP_KEY": self.api_key}

    def gateway(self) -> Gateway:
        """One more gateway, started."""
        log = self._folder / f"gateway-{len(self.gateways)}.log"
        gateway = Gateway(self._folder / "home", log, self._environment)
        self.gateways.append(gateway)
        gateway.start()
        return gateway

    def client(self, gateway: Gateway) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", headers=headers, timeout=60, trust_env=False)

    @contextmanager
    def workers(self, count: int = 2) -> Iterator[Counter[str]]:
        """Threads that end every job at once; how often each job was ended."""
        ended: Counter[str] = Counter()
        stopping = threading.Event()

        def work(name: str) -> None:
            while not stopping.is_set():
                claim = self.store.claim("default", name, tuple(Size))
                if claim is None:
                    stopping.wait(0.01)
                elif self.store.finish(claim, DONE):
                    ended[claim.job.id] += 1

        with ThreadPoolExecutor(count) as threads:
            working = [threads.submit(work, f"w{number}") for number in range(count)]
            try:
                yield ended
            finally:
                stopping.set()
            for each in working:
                each.result(timeout=30)


@contextmanager
def deployment(folder: Path, **environment: str) -> Iterator[Deployment]:
    """Nothing of it is left when the block ends."""
    write_catalogue(folder / "home")
    with valkey_server(folder) as server:
        deployed = Deployment(folder, server, environment)
        try:
            yield deployed
        finally:
            for gateway in deployed.gateways:
                gateway.kill()
            deployed.redis.close()
