"""Batches that wait for a job whose record was damaged, on a real server."""

from collections.abc import Callable

import pytest
from redis import Redis

from services.adapters.redis_client import make_client
from services.batches.record import Phase
from services.jobs.record import Size
from tests.services.batches.bench import BatchBench, valkey_batches


@pytest.fixture
def client(redis_url: str) -> Redis:
    return make_client(redis_url, patient=False)


@pytest.fixture
def stores(client: Redis) -> BatchBench:
    return valkey_batches(client)


def replace(client: Redis, job_id: str) -> None:
    client.delete(f"lensd:job:{job_id}")
    client.set(f"lensd:job:{job_id}", "no record")


def lose(client: Redis, job_id: str) -> None:
    client.delete(f"lensd:job:{job_id}")


def blank(client: Redis, job_id: str) -> None:
    client.hdel(f"lensd:job:{job_id}", "batch", "spec")


@pytest.mark.parametrize("damage", [replace, lose, blank])
def test_a_batch_ends_though_the_record_of_its_last_job_names_it_no_more(
    stores: BatchBench, client: Redis, damage: Callable[[Redis, str], None]
) -> None:
    batch_id = stores.running(lines=1)
    job_id = stores.submit(batch_id, 0).id
    damage(client, job_id)
    assert stores.jobs.store.claim("default", "w1", tuple(Size)) is None
    batch = stores.batch(batch_id)
    assert (batch.phase, batch.failed, batch.living) == (Phase.ENDED, 1, 0)
    stores.submit(batch_id, 0)
    assert stores.jobs.store.depth("default") == 0
