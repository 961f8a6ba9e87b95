"""The registry of workers, on the fake and on a real server."""

import time

import pytest

from services.adapters.redis_client import make_client
from services.adapters.redis_workers import RedisWorkers
from services.jobs.memory import MemoryWorkers
from services.jobs.ports import WorkerRegistry, WorkerState

W1 = WorkerState(worker="w1", pool="default", models={"tiny": "loading"}, runner="this code")
W2 = WorkerState(worker="w2", pool="other", models={})


@pytest.fixture(params=["memory", "valkey"])
def workers(request: pytest.FixtureRequest) -> WorkerRegistry:
    if request.param == "memory":
        return MemoryWorkers()
    return RedisWorkers(make_client(request.getfixturevalue("redis_url"), patient=False))


def test_workers_that_announced_themselves_are_alive(workers: WorkerRegistry) -> None:
    assert list(workers.alive()) == []
    workers.announce(W2, ttl_s=10)
    workers.announce(W1, ttl_s=10)
    assert list(workers.alive()) == [W1, W2]


def test_the_latest_word_of_a_worker_counts(workers: WorkerRegistry) -> None:
    loaded = WorkerState(worker="w1", pool="default", models={"tiny": "loaded"})
    workers.announce(W1, ttl_s=10)
    workers.announce(loaded, ttl_s=10)
    assert list(workers.alive()) == [loaded]


def test_a_worker_that_falls_silent_is_forgotten(workers: WorkerRegistry) -> None:
    workers.announce(W1, ttl_s=0.05)
    workers.announce(W2, ttl_s=10)
    time.sleep(0.1)
    assert list(workers.alive()) == [W2]
    workers.announce(W1, ttl_s=10)
    assert list(workers.alive()) == [W1, W2]


def test_a_worker_that_retires_is_gone_at_once(workers: WorkerRegistry) -> None:
    workers.announce(W1, ttl_s=10)
    workers.retire("w1")
    assert list(workers.alive()) == []
