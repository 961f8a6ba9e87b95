"""Batches whose record, or that of a job of theirs, was damaged, on a real server."""

from collections.abc import Callable
from typing import cast

import pytest
from redis import Redis

from services.adapters.redis_client import make_client
from services.batches.record import BATCH_DAMAGED, Phase
from services.contracts.errors import Limited
from services.contracts.job import JobStatus
from services.jobs.record import Idempotency, Size
from tests.services.batches.bench import MANY, BatchBench, new_batch, valkey_batches
from tests.services.batches.test_keeper import Stand
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import DONE


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


def set_to(**fields: str) -> Callable[[Redis, str], None]:
    def damage(client: Redis, batch_id: str) -> None:
        for name, value in fields.items():
            client.hset(f"lensd:batch:{batch_id}", name, value)

    return damage


def replace_batch(client: Redis, batch_id: str) -> None:
    client.delete(f"lensd:batch:{batch_id}")
    client.set(f"lensd:batch:{batch_id}", "no record")


def lose_batch(client: Redis, batch_id: str) -> None:
    client.delete(f"lensd:batch:{batch_id}")


def lose_owner(client: Redis, batch_id: str) -> None:
    client.hdel(f"lensd:batch:{batch_id}", "owner")


def spoil_wrong_lines(client: Redis, batch_id: str) -> None:
    client.rpush(f"lensd:batch-wrong:{batch_id}", "no json")


def replace_lines(client: Redis, batch_id: str) -> None:
    client.delete(f"lensd:batch-lines:{batch_id}")
    client.set(f"lensd:batch-lines:{batch_id}", "no list")


def replace_living(client: Redis, batch_id: str) -> None:
    client.delete(f"lensd:batch-living:{batch_id}")
    client.set(f"lensd:batch-living:{batch_id}", "no set")


MENDED = {
    "checked": set_to(checked="many"),
    "fence": set_to(fence="many"),
    "status": set_to(status="resting"),
    "times": set_to(created_at="yesterday", started_at="later", expires_at="soon"),
    "error": set_to(error="{"),
    "owner": lose_owner,
    "wrong": spoil_wrong_lines,
    "living": replace_living,
    "list": replace_lines,
}
UNREADABLE = {"head": set_to(head="{}"), "lines": replace_batch, "record": lose_batch}


def damaged_batch(stores: BatchBench, client: Redis, damage: Callable[[Redis, str], None]) -> tuple[str, str, str]:
    """A running batch whose record was damaged, and then met by a keeper; its queued job, and one that has ended."""
    batch_id = stores.running(lines=3)
    ended, queued = (stores.submit(batch_id, index).id for index in range(2))
    assert stores.jobs.store.finish(stores.jobs.claim(), DONE)
    damage(client, batch_id)
    stores.jobs.advance(1)
    turn = stores.batches.take()
    assert turn is None or turn.batch.phase is Phase.FAILED
    return batch_id, queued, ended


@pytest.mark.parametrize("damage", [*MENDED.values(), *UNREADABLE.values()], ids=[*MENDED, *UNREADABLE])
def test_a_damaged_batch_fails_frees_its_place_and_lets_its_jobs_go(
    stores: BatchBench, client: Redis, damage: Callable[[Redis, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    batch_id, queued, ended = damaged_batch(stores, client, damage)
    assert f"quarantined the malformed record of {batch_id}" in caplog.text
    assert client.scard("lensd:batches-open:ada") == 0
    batch = stores.batches.get(batch_id)
    if damage in MENDED.values():
        assert batch is not None
        assert (batch.phase, batch.error, batch.succeeded) == (Phase.FAILED, BATCH_DAMAGED, 1)
        assert batch.expires_at is not None
    else:
        assert batch is None
    last = stores.jobs.claim()
    assert last.job.id == queued
    assert stores.jobs.store.finish(last, DONE)
    assert stores.running() == stores.turn().batch.id
    for _ in range(3):
        stores.jobs.advance(POLICY.retention_s)
        stores.jobs.store.reap()
        while turn := stores.batches.take():
            stores.batches.forget(turn.batch.id)
    assert stores.jobs.store.get(ended) is None
    left = cast("list[bytes]", client.keys(f"lensd:*{batch_id}*"))
    assert all(client.ttl(key) > 0 for key in left), left
    assert client.zcard("lensd:batches:ada") == client.zcard("lensd:batches-due") == 0
    assert client.get("lensd:kept-bytes:ada") is None


@pytest.mark.parametrize("damage", [replace_batch, set_to(succeeded="many")], ids=["record", "count"])
def test_a_job_ends_as_it_did_though_its_batch_is_damaged(
    stores: BatchBench, client: Redis, damage: Callable[[Redis, str], None]
) -> None:
    batch_id = stores.running(lines=2)
    job_id = stores.submit(batch_id, 0).id
    claim = stores.jobs.claim()
    damage(client, batch_id)
    assert stores.jobs.store.finish(claim, DONE)
    assert stores.jobs.record(job_id).status is JobStatus.SUCCEEDED
    assert stores.batches.take() is None or stores.batch(batch_id).phase is Phase.FAILED


def test_a_batch_with_a_damaged_line_fails_and_holds_up_no_other(stores: BatchBench, client: Redis) -> None:
    stand = Stand(stores)
    damaged, sound = stand.upload(["line-0", "line-1"]), stand.upload(["line-0"])
    while not all(stores.batch(batch_id).phase is Phase.RUNNING for batch_id in (damaged, sound)):
        stand.keeper.turn()
        stores.jobs.advance(1)
        assert stores.batch(damaged).fed == 0
    client.lset(f"lensd:batch-lines:{damaged}", 1, "no json")
    for _ in range(4):
        stand.keeper.turn()
        stores.jobs.advance(1)
    assert (stores.batch(damaged).phase, stores.batch(damaged).error) == (Phase.FAILED, BATCH_DAMAGED)
    assert stores.batch(sound).fed == 1


def test_a_damaged_batch_of_which_nobody_knows_whose_it_was_frees_its_place_when_that_is_needed(
    stores: BatchBench, client: Redis
) -> None:
    lost, sound = stores.upload(), stores.upload()
    client.delete(f"lensd:batch:{lost}")
    with pytest.raises(Limited):
        stores.batches.create(new_batch(), 1)
    stores.batches.create(new_batch(), 2)
    assert stores.batch(sound).phase is Phase.VALIDATING


def test_the_idempotency_key_of_a_batch_without_a_record_is_free_again(stores: BatchBench, client: Redis) -> None:
    key = Idempotency("k1", "digest")
    lost = stores.batches.create(new_batch(), MANY, key).id
    replace_batch(client, lost)
    again = stores.batches.create(new_batch(), MANY, key).id
    assert again != lost
    assert stores.batches.create(new_batch(), MANY, key).id == again
