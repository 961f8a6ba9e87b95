"""The health check of the worker's container, against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.worker_health import why_unhealthy
from services.adapters.embedded_valkey import running_valkey
from services.adapters.redis_client import make_client
from services.adapters.redis_workers import RedisWorkers
from services.jobs.ports import WorkerState


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    with running_valkey(folder / "data", folder / "run") as valkey:
        yield valkey.url


def announce(redis_url: str, worker: str) -> None:
    client = make_client(redis_url, patient=False)
    RedisWorkers(client).announce(WorkerState(worker=worker, pool="default", models={}), ttl_s=30)
    client.close()


def test_a_worker_that_announced_itself_is_healthy(redis_url: str) -> None:
    announce(redis_url, "here-17-ab12")
    assert why_unhealthy(redis_url, "here") is None


def test_a_heartbeat_from_another_host_makes_nobody_healthy(redis_url: str) -> None:
    announce(redis_url, "elsewhere-17-ab12")
    assert why_unhealthy(redis_url, "else") == "no heartbeat from else"


def test_without_the_store_the_worker_is_unhealthy() -> None:
    assert "does not answer" in (why_unhealthy("redis://127.0.0.1:1/0", "here") or "")
