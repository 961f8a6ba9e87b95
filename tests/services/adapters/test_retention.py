"""Nothing in the store grows for ever: once its jobs are forgotten, only what is bounded or expires is left."""

import re
from collections.abc import Iterator
from importlib import resources
from typing import cast

import pytest
from redis import Redis

from services.adapters.redis_blobs import RedisBlobs
from services.adapters.redis_client import make_client
from services.adapters.redis_jobs import RedisJobStore
from services.adapters.redis_records import KEPT_SHARED_EVENTS
from services.contracts.errors import ErrorCode
from services.contracts.generation import NewTokens
from services.contracts.job import JobError, JobProgress
from services.jobs.ids import new_blob_key
from services.jobs.limits import OwnerLimits
from services.jobs.memory import MemoryDoorbell
from services.jobs.policy import JobPolicy
from services.jobs.reaper import Reaper
from services.jobs.record import Cancelled, Claim, Failed, Idempotency, Size
from tests.services.adapters.valkey import pass_time
from tests.services.jobs.samples import DONE, new_job

POLICY = JobPolicy()
TOKENS = NewTokens(prompt=0, strength=0.0, first=0, tokens=(1,), strings=("a",), log_probs=(-1.0,))
BOUNDED = {
    "lensd:events": "a stream of the latest events, of a bounded length",
    "lensd:pools": "one entry a pool, which operators name",
    "lensd:reaper": "three fields",
    "lensd:blob-bytes": "a number",
}
"""What may be left for ever, and why."""


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with make_client(redis_url, patient=False) as client:
        yield client


def claim(store: RedisJobStore, worker: str) -> Claim:
    claimed = store.claim("default", worker, tuple(Size))
    assert claimed is not None
    return claimed


def live_every_life(client: Redis, store: RedisJobStore, blobs: RedisBlobs) -> None:
    """Jobs of two owners end in every way there is, one of them by the death of its worker."""
    for ending in (DONE, Failed(JobError(code=ErrorCode.METHOD_FAILED, message="no")), Cancelled()):
        store.create(new_job("ada", deadline_s=3_600).model_copy(update={"limits": OwnerLimits(running=5)}))
        held = claim(store, "w1")
        store.executing("w1", [held])
        store.progress(held, JobProgress(done=1, planned=2), [TOKENS])
        blobs.put(new_blob_key(held.job.id, held.attempt), b"x" * 100)
        assert store.finish(held, ending)
    store.cancel(store.create(new_job("bob"), Idempotency("key", "digest")).id)
    store.delete(store.create(new_job("bob"), Idempotency("another", "digest")).id)
    store.create(new_job("bob", deadline_s=1))
    store.create(new_job("bob", priority="batch", cost=POLICY.small_cost + 1))
    pass_time(client, POLICY.reap_every_s)
    store.reap()
    for _ in range(POLICY.max_blamed):
        lost = claim(store, "w2")
        store.executing("w2", [lost])
        for _ in range(round(POLICY.lease_s / POLICY.reap_every_s) + 2):
            pass_time(client, POLICY.reap_every_s)
            store.reap()
    store.executing("w1", [])
    store.executing("w2", [])


def keys_of(client: Redis) -> list[str]:
    return [key.decode() for key in cast("list[bytes]", client.keys("lensd:*"))]


def families(client: Redis) -> set[str]:
    """The families of keys that are there, as the prelude of the scripts names them."""
    ids = (r"job_[a-z0-9]{26}", r"(?<=:)(ada|bob)", r"(?<=:)default", r"(?<=:)w\d", r"(?<=:)[0-9a-f]{64}", r"\d{5}$")
    found = set()
    for key in keys_of(client):
        family = re.sub(r"(:interactive|:batch):(small|large)", "", key)
        found.add(re.sub("|".join(ids), "*", family))
    return found


def test_once_all_jobs_are_forgotten_only_what_is_bounded_or_expires_is_left(client: Redis) -> None:
    store, blobs = RedisJobStore(client, POLICY), RedisBlobs(client)
    reaper = Reaper(store, blobs, MemoryDoorbell(), every_s=POLICY.reap_every_s)
    live_every_life(client, store, blobs)
    assert store.depth("default") == 0
    assert len(client.keys("lensd:job:*")) == 6
    for _ in range(3):
        pass_time(client, POLICY.retention_s)
        reaper.round()
    expires = {key: client.ttl(key) != -1 for key in keys_of(client)}
    assert {key for key, does in expires.items() if not does} == set(BOUNDED)
    assert all(key.startswith("lensd:work:") for key, does in expires.items() if does)
    assert client.get("lensd:blob-bytes") == b"0"


def test_every_family_of_keys_that_jobs_leave_is_listed_in_the_prelude(client: Redis) -> None:
    store, blobs = RedisJobStore(client, POLICY), RedisBlobs(client)
    text = (resources.files("services.adapters") / "lua" / "job_prelude.lua").read_text()
    listed = {
        re.sub(r"<[^>]*>", "*", name) for name in re.findall(r"^--   (lensd:(?:<[^>]*>|[^ ,])*)", text, re.MULTILINE)
    }
    listed |= {"lensd:leases", "lensd:deadlines", "lensd:expiries"}
    store.create(new_job("ada", deadline_s=3_600), Idempotency("key", "digest"))
    held = claim(store, "w1")
    store.executing("w1", [held])
    store.progress(held, JobProgress(done=1, planned=2), [TOKENS])
    store.create(new_job("ada"))
    store.reap()
    seen = families(client)
    live_every_life(client, store, blobs)
    blob_families = {"lensd:blob:*/1/*", "lensd:blobs:*", "lensd:blobs", "lensd:blob-bytes"}
    seen |= {family for family in families(client) if not family.startswith("lensd:blob")}
    assert seen - blob_families <= listed


def test_the_shared_stream_of_events_is_capped(client: Redis) -> None:
    store = RedisJobStore(client, POLICY)
    store.create(new_job())
    held = claim(store, "w1")
    pipeline = client.pipeline(transaction=False)
    for number in range(2 * KEPT_SHARED_EVENTS):
        pipeline.xadd("lensd:events", {"job": "job_x", "n": number})
    pipeline.execute()
    store.progress(held, JobProgress(done=1, planned=2))
    assert client.xlen("lensd:events") <= 1.1 * KEPT_SHARED_EVENTS


def test_blobs_of_a_running_job_are_not_swept_however_long_it_runs(client: Redis) -> None:
    store, blobs = RedisJobStore(client, POLICY), RedisBlobs(client)
    reaper = Reaper(store, blobs, MemoryDoorbell(), every_s=POLICY.reap_every_s)
    store.create(new_job())
    held = claim(store, "w1")
    key = new_blob_key(held.job.id, held.attempt)
    blobs.put(key, b"result")
    for _ in range(3):
        for _ in range(round(POLICY.sweep_every_s / POLICY.lease_s) + 1):
            pass_time(client, POLICY.lease_s / 2)
            assert store.heartbeat([held])[held.job.id].held
        pass_time(client, POLICY.sweep_every_s / 2)
        assert store.heartbeat([held])[held.job.id].held
        assert reaper.round().sweep
        assert blobs.get(key) == b"result"
    assert store.finish(held, DONE)
