"""What one owner may keep: it fills its own share, and another owner's work goes on untouched."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from services.adapters.redis_blobs import OWNER_SHARE, RedisBlobs
from services.adapters.redis_cache import RedisResultCache
from services.adapters.redis_client import make_client
from services.contracts.errors import ErrorCode, Limited, Unavailable
from services.contracts.job import JobStatus
from services.jobs.cache import ResultCache
from services.jobs.ids import new_batch_id, new_blob_key
from services.jobs.limits import OwnerLimits
from services.jobs.memory import MemoryJobStore, MemoryResultCache
from services.jobs.ports import JobFilter
from services.jobs.record import Idempotency, StoredResult, Succeeded, Ties
from tests.services.adapters.valkey import valkey_server
from tests.services.jobs.bench import POLICY, Bench, memory_bench, valkey_bench
from tests.services.jobs.samples import DONE, new_job

FEW = replace(POLICY, max_kept=4)


@pytest.fixture(params=["memory", "valkey"])
def few(request: pytest.FixtureRequest) -> Iterator[tuple[Bench, ResultCache]]:
    """Stores that keep few jobs of an owner."""
    if request.param == "memory":
        bench = memory_bench(FEW)
        assert isinstance(bench.store, MemoryJobStore)
        yield bench, MemoryResultCache(bench.store, FEW)
        return
    with make_client(request.getfixturevalue("redis_url"), patient=False) as client:
        yield valkey_bench(client, FEW), RedisResultCache(client, FEW)


def run_one(bench: Bench, owner: str = "ada") -> str:
    """A job from its creation to its end."""
    job_id = bench.submit(owner)
    claim = bench.claim()
    assert claim.job.id == job_id
    assert bench.store.finish(claim, DONE)
    return job_id


def refusal(bench: Bench, owner: str = "ada") -> Limited:
    with pytest.raises(Limited) as refused:
        bench.submit(owner)
    assert refused.value.code is ErrorCode.TOO_MANY_JOBS
    return refused.value


def test_an_owner_keeps_only_so_many_jobs_and_another_is_not_touched(few: tuple[Bench, ResultCache]) -> None:
    bench, _ = few
    ended = [run_one(bench) for _ in range(FEW.max_kept - 1)]
    running = bench.submit()
    claim = bench.claim()
    message = refusal(bench).message
    assert str(FEW.max_kept) in message
    assert "delete" in message
    for _ in range(FEW.max_kept):
        run_one(bench, "bob")
    assert bench.store.finish(claim, DONE)
    assert all(bench.record(job_id).status is JobStatus.SUCCEEDED for job_id in (*ended, running))
    refusal(bench)


def test_deleted_and_expired_jobs_make_room_for_others(few: tuple[Bench, ResultCache]) -> None:
    bench, _ = few
    ended = [run_one(bench) for _ in range(FEW.max_kept)]
    refusal(bench)
    bench.store.delete(ended[1])
    run_one(bench)
    refusal(bench)
    bench.reap_after(FEW.retention_s + FEW.reap_every_s)
    for _ in range(FEW.max_kept):
        run_one(bench)


def test_a_repeated_request_is_answered_though_no_more_is_kept(few: tuple[Bench, ResultCache]) -> None:
    bench, _ = few
    key = Idempotency("k1", "digest")
    first = bench.store.create(new_job(), key)
    for _ in range(FEW.max_kept - 1):
        bench.submit()
    assert bench.store.create(new_job(), key).id == first.id
    refusal(bench)


def test_living_jobs_are_told_of_before_kept_ones(few: tuple[Bench, ResultCache]) -> None:
    bench, _ = few
    for _ in range(FEW.max_kept):
        bench.submit()
    with pytest.raises(Limited, match="queued or running"):
        bench.store.create(new_job().model_copy(update={"limits": OwnerLimits(jobs=FEW.max_kept)}))


def test_no_result_is_copied_for_an_owner_who_may_keep_no_more(few: tuple[Bench, ResultCache]) -> None:
    bench, results = few
    asking = {"ties": Ties(cache_entry="question:made-so")}
    bench.store.create(new_job().model_copy(update=asking))
    assert bench.store.finish(bench.claim(), replace(DONE, fingerprint="made-so"))
    assert results.find(new_job().model_copy(update=asking)) is not None
    for _ in range(FEW.max_kept - 1):
        bench.submit()
    assert results.find(new_job().model_copy(update=asking)) is None
    assert results.find(new_job("bob").model_copy(update=asking)) is not None


MAXMEMORY = 40 * 2**20


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[Redis]:
    with valkey_server(tmp_path, maxmemory_bytes=MAXMEMORY) as server, make_client(server.url, patient=True) as client:
        yield client


def test_an_owner_fills_only_its_share_of_the_memory_and_another_is_not_touched(small_server: Redis) -> None:
    bench = valkey_bench(small_server)
    share = POLICY.max_kept_share * POLICY.max_memory * MAXMEMORY
    large = StoredResult(document='"' + 2**20 * "x" + '"')
    kept = 0

    def fill() -> None:
        nonlocal kept
        while kept * 2**20 < 2 * share:
            bench.submit()
            bench.store.finish(bench.claim(), Succeeded(large))
            kept += 1

    with pytest.raises(Limited, match="bytes"):
        fill()
    assert kept * 2**20 <= share + 2**20
    used = small_server.info("memory")["used_memory"]
    assert used < POLICY.max_memory * MAXMEMORY, "the rest is for others"
    run_one(bench, "bob")
    (oldest,) = bench.store.list("ada", JobFilter(), None, kept).jobs[-1:]
    bench.store.delete(oldest.id)
    bench.submit()


def charged(client: Redis) -> int:
    return int(cast("bytes", client.get("lensd:kept-bytes:ada")))


def test_what_an_owner_is_charged_is_about_what_its_jobs_take(small_server: Redis) -> None:
    bench = valkey_bench(small_server, replace(POLICY, max_queued=10_000))
    before = small_server.info("memory")["used_memory"]
    for _ in range(1_000):
        bench.submit()
    queued = small_server.info("memory")["used_memory"] - before
    assert 0.7 < charged(small_server) / queued < 1.3
    for _ in range(1_000):
        bench.store.finish(bench.claim(), DONE)
    ended = small_server.info("memory")["used_memory"] - before
    assert 0.7 < charged(small_server) / ended < 1.3


def test_forgotten_jobs_give_their_bytes_back_and_damage_is_made_up_for(small_server: Redis) -> None:
    bench = valkey_bench(small_server)
    jobs = [run_one(bench) for _ in range(3)]
    small_server.hset(f"lensd:job:{jobs[0]}", "bytes", "many")
    assert all(bench.store.delete(job_id) for job_id in jobs)
    assert small_server.get("lensd:kept-bytes:ada") is None


def test_an_owner_fills_only_its_share_of_the_blobs_and_another_is_not_touched(redis_url: str) -> None:
    with make_client(redis_url, patient=False) as client:
        bench, blobs = valkey_bench(client), RedisBlobs(client, max_bytes=1_000)
        share = round(OWNER_SHARE * 1_000)
        ada, bob = bench.submit("ada"), bench.submit("bob")
        upload = new_batch_id()
        client.hset(f"lensd:batch:{upload}", "owner", "ada")
        blobs.put(new_blob_key(upload, 0), b"x" * 100)
        key = new_blob_key(ada, 1)
        blobs.put(key, b"x" * (share - 100))
        blobs.put(key, b"x" * (share - 100))
        with pytest.raises(Unavailable, match="your share"):
            blobs.put(new_blob_key(ada, 1), b"x")
        blobs.put(new_blob_key(bob, 1), b"x" * share)
        with pytest.raises(Unavailable, match="is full"):
            blobs.put(new_blob_key(bench.submit("eve"), 1), b"x")
        blobs.delete(upload)
        blobs.put(new_blob_key(ada, 1), b"x" * 100)
        blobs.delete(ada)
        blobs.delete(bob)
        assert client.keys("lensd:blob-bytes:*") == []
        assert client.get("lensd:blob-bytes") == b"0"


def test_copies_for_a_job_without_a_record_count_as_its_owners(redis_url: str) -> None:
    with make_client(redis_url, patient=False) as client:
        bench, results, blobs = valkey_bench(client), RedisResultCache(client, POLICY), RedisBlobs(client)
        asking = {"ties": Ties(cache_entry="question:made-so")}
        bench.store.create(new_job().model_copy(update=asking))
        assert bench.store.finish(bench.claim(), replace(DONE, fingerprint="made-so"))
        late = new_job("bob").model_copy(update=asking)
        assert results.find(late) is not None
        blobs.put(new_blob_key(late.id, 0), b"x" * 100)
        assert client.get("lensd:blob-bytes:bob") == b"100"
