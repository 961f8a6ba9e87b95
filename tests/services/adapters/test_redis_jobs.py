"""What the real job store does beyond the port: its bounds, its hygiene, and records that others tampered with."""

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from services.adapters.redis_client import make_client
from services.adapters.redis_jobs import RedisJobStore
from services.adapters.redis_records import KEPT_EVENTS
from services.contracts.errors import ErrorCode, Unavailable
from services.contracts.job import JobProgress, JobStatus
from services.jobs.policy import JobPolicy
from services.jobs.ports import JobFilter
from services.jobs.record import Idempotency, Size, Ties
from tests.services.adapters.valkey import pass_time, valkey_server
from tests.services.jobs.samples import DONE, new_job

POLICY = JobPolicy()


@pytest.fixture
def client(redis_url: str) -> Redis:
    return make_client(redis_url, patient=False)


@pytest.fixture
def store(client: Redis) -> RedisJobStore:
    return RedisJobStore(client, POLICY)


def test_no_job_is_admitted_when_memory_runs_short_but_running_ones_end(tmp_path: Path) -> None:
    with (
        valkey_server(tmp_path, maxmemory_bytes=20 * 2**20) as server,
        make_client(server.url, patient=False) as client,
    ):
        store = RedisJobStore(client, POLICY)
        job_id = store.create(new_job()).id
        claim = store.claim("default", "w1", tuple(Size))
        assert claim is not None
        _fill(client, 15)
        with pytest.raises(Unavailable, match="memory") as refusal:
            store.create(new_job())
        assert refusal.value.code is ErrorCode.QUEUE_FULL
        with pytest.raises(OutOfMemoryError):
            _fill(client, 30)
        assert store.heartbeat([claim])[job_id].held
        assert store.finish(claim, DONE)


def test_there_is_room_for_results_below_a_share_of_the_bound(tmp_path: Path) -> None:
    with (
        valkey_server(tmp_path, maxmemory_bytes=20 * 2**20) as server,
        make_client(server.url, patient=False) as client,
    ):
        store = RedisJobStore(client, POLICY)
        assert store.roomy()
        _fill(client, 10)
        assert not store.roomy()
        client.config_set("maxmemory", 0)
        assert not store.roomy(), "without a bound nobody knows how much room there is"


def test_a_finished_job_keeps_no_spec_and_no_inputs(store: RedisJobStore, client: Redis) -> None:
    job_id = store.create(new_job()).id
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    assert client.hexists(f"lensd:job:{job_id}", "inputs")
    store.finish(claim, DONE)
    assert not client.hexists(f"lensd:job:{job_id}", "spec")
    assert not client.hexists(f"lensd:job:{job_id}", "inputs")


def test_a_forgotten_job_leaves_nothing_behind_but_its_days_work_for_two_days(
    store: RedisJobStore, client: Redis
) -> None:
    store.create(new_job(deadline_s=100_000 / 2), Idempotency("k", "d"))
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    store.executing("w1", [claim])
    store.finish(claim, DONE)
    store.executing("w1", [])
    pass_time(client, POLICY.retention_s)
    store.reap()
    (work,) = client.keys("lensd:work:ada:*")
    assert 0 < client.ttl(work) <= 2 * 86_400
    assert set(client.keys()) == {b"lensd:events", b"lensd:pools", b"lensd:reaper", work}


def test_a_jobs_kept_events_are_capped(store: RedisJobStore, client: Redis) -> None:
    job_id = store.create(new_job()).id
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    for done in range(2 * KEPT_EVENTS):
        store.progress(claim, JobProgress(done=done, planned=1_000))
    assert client.llen(f"lensd:events:{job_id}") == KEPT_EVENTS


def _fill(client: Redis, megabytes: int) -> None:
    for _ in range(megabytes):
        client.rpush("filler", os.urandom(2**20))


def _damage(client: Redis, job_id: str, fields: Mapping[Any, str | bytes | None]) -> None:
    """Overwrites fields of a record; None takes one away."""
    for name, value in fields.items():
        if value is None:
            client.hdel(f"lensd:job:{job_id}", name)
        else:
            client.hset(f"lensd:job:{job_id}", name, value)


def _replace(client: Redis, job_id: str) -> None:
    """Puts a text in a record's place."""
    client.delete(f"lensd:job:{job_id}")
    client.set(f"lensd:job:{job_id}", "no record")


@pytest.mark.parametrize(
    "fields",
    [
        {"spec": "not json"},
        {"spec": '{"kind":"unheard-of"}'},
        {"inputs": "[]"},
        {"spec": '{"kind":"features","prompts":["Paris"]}'},
        {"head": "{}"},
        {"head": "[]"},
        {"head": '{"owner":"eve"}'},
        {"created_at": "yesterday"},
        {"owner": b"\xff"},
        {"size": "enormous"},
        {"attempt": "many"},
        {"deadline_at": "soon"},
        {"max_running": "few"},
        {"status": "resting"},
        {"version": "last"},
        {"owner": None},
        {"pool": None},
        {"head": None},
        {"created_at": None},
    ],
)
def test_a_malformed_record_is_quarantined_and_the_next_job_served(
    store: RedisJobStore, client: Redis, caplog: pytest.LogCaptureFixture, fields: Mapping[str, str | bytes | None]
) -> None:
    damaged, sound = store.create(new_job()).id, store.create(new_job()).id
    _damage(client, damaged, fields)
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    assert claim.job.id == sound
    assert client.hget(f"lensd:job:{damaged}", "status") == b"failed"
    assert damaged in caplog.text
    assert "Paris" not in caplog.text
    assert store.finish(claim, DONE)
    assert store.claim("default", "w1", tuple(Size)) is None
    assert client.scard("lensd:living:ada") == store.depth("default") == 0
    pass_time(client, POLICY.retention_s)
    store.reap()
    assert client.keys(f"lensd:*{damaged}*") == []


def test_a_batch_and_an_endpoint_hear_of_a_quarantined_job_once(store: RedisJobStore, client: Redis) -> None:
    client.hset("lensd:batch:batch_1", mapping={"owner": "ada", "status": "running", "lines": 2, "invalid": 0})
    client.hset("lensd:batch:batch_1", mapping={"succeeded": 0, "failed": 0, "cancelled": 0})
    client.hset("lensd:webhook:wh_1", "owner", "ada")
    damaged = store.create(new_job().model_copy(update={"ties": Ties(batch="batch_1", webhook="wh_1")})).id
    _damage(client, damaged, {"spec": "{"})
    assert store.claim("default", "w1", tuple(Size)) is None
    assert client.hget("lensd:batch:batch_1", "failed") == b"1"
    assert client.zcard("lensd:deliveries:ada") == 1
    assert client.scard("lensd:batch-living:batch_1") == 0


def test_a_cached_answer_whose_record_lost_its_owner_is_forgotten_in_its_time(
    store: RedisJobStore, client: Redis
) -> None:
    client.hset("lensd:job:job_x", mapping={"status": "succeeded", "cached": 1})
    client.zadd("lensd:expiries", {"job_x": 0})
    store.reap()
    assert not client.exists("lensd:job:job_x")
    assert client.zcard("lensd:expiries") == 0


def test_what_is_no_record_at_all_is_kept_aside_for_a_while_and_spoils_nothing(
    store: RedisJobStore, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    replaced, sound = store.create(new_job()).id, store.create(new_job()).id
    _replace(client, replaced)
    assert store.get(replaced) is None
    assert [job.id for job in store.list("ada", JobFilter(), None, 10).jobs] == [sound]
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    assert claim.job.id == sound
    assert f"quarantined the malformed record of {replaced}" in caplog.text
    assert client.get(f"lensd:quarantined:{replaced}") == b"no record"
    assert 0 < client.ttl(f"lensd:quarantined:{replaced}") <= POLICY.retention_s


@pytest.mark.parametrize("request_sha256", ["digest", "another"])
def test_the_idempotency_key_of_a_job_without_a_record_is_free_again(
    store: RedisJobStore, client: Redis, request_sha256: str
) -> None:
    replaced, lost = (store.create(new_job(), Idempotency(key, "digest")).id for key in ("k1", "k2"))
    _replace(client, replaced)
    client.delete(f"lensd:job:{lost}")
    for key in ("k1", "k2"):
        again = store.create(new_job(), Idempotency(key, request_sha256)).id
        assert again not in (replaced, lost)
        assert store.create(new_job(), Idempotency(key, request_sha256)).id == again
    assert store.claim("default", "w1", tuple(Size)) is not None


def test_a_damaged_record_costs_its_workers_other_jobs_nothing(store: RedisJobStore, client: Redis) -> None:
    store.create(new_job())
    store.create(new_job())
    damaged, sound = (store.claim("default", "w1", tuple(Size)) for _ in range(2))
    assert damaged is not None
    assert sound is not None
    _replace(client, damaged.job.id)
    beats = store.heartbeat([damaged, sound])
    assert not beats[damaged.job.id].held
    assert beats[sound.job.id].held
    pass_time(client, POLICY.lease_s)
    for _ in range(3):
        pass_time(client, POLICY.reap_every_s)
        store.reap()
    again = store.claim("default", "w2", tuple(Size))
    assert again is not None
    assert again.job.id == sound.job.id
    assert client.exists(f"lensd:quarantined:{damaged.job.id}")


def test_a_damaged_charge_does_not_keep_a_job_from_ending(store: RedisJobStore, client: Redis) -> None:
    _damage(client, store.create(new_job()).id, {"charged": "much"})
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    assert store.finish(claim, DONE, bill=7)


def test_a_job_id_put_in_line_by_hand_is_passed_over(store: RedisJobStore, client: Redis) -> None:
    sound = store.create(new_job("ada")).id
    client.zadd("lensd:line:default:interactive:small:ada", {"nonsense": 0})
    client.rpush("lensd:turns:default:interactive:small", "nobody")
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    assert claim.job.id == sound
    assert store.claim("default", "w1", tuple(Size)) is None


def test_a_malformed_record_does_not_spoil_a_listing(store: RedisJobStore, client: Redis) -> None:
    damaged, sound = store.create(new_job()).id, store.create(new_job()).id
    _damage(client, damaged, {"head": "{}"})
    assert store.get(damaged) is None
    assert [job.id for job in store.list("ada", JobFilter(), None, 10).jobs] == [sound]


def test_the_reaper_survives_records_put_there_by_hand(store: RedisJobStore, client: Redis) -> None:
    client.zadd("lensd:leases", {"job_x": 0})
    client.zadd("lensd:deadlines", {"job_y": 0})
    client.zadd("lensd:expiries", {"job_z": 0})
    client.hset("lensd:job:job_x", mapping={"status": "running", "worker": "w", "attempt": "1"})
    store.reap()
    pass_time(client, POLICY.retention_s)
    store.reap()
    assert not client.exists("lensd:job:job_x")
    assert client.zcard("lensd:leases") == client.zcard("lensd:deadlines") == client.zcard("lensd:expiries") == 0


def test_acknowledged_jobs_survive_a_restart_of_the_server_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server, make_client(server.url, patient=True) as client:
        store = RedisJobStore(client, POLICY)
        jobs = [store.create(new_job(owner)).id for owner in ("ada", "bob") for _ in range(5)]
        first = store.claim("default", "w1", tuple(Size))
        assert first is not None
        server.stop()
        server.start()
        assert store.heartbeat([first])[first.job.id].held
        rest = [store.claim("default", "w1", tuple(Size)) for _ in range(9)]
        assert {claim.job.id for claim in (first, *rest) if claim} == set(jobs)
        assert store.claim("default", "w1", tuple(Size)) is None


def test_thousands_of_jobs_past_their_deadline_are_cleared_in_rounds(store: RedisJobStore, client: Redis) -> None:
    jobs = [store.create(new_job(deadline_s=1)).id for _ in range(1_200)]
    pass_time(client, 2)
    ended: list[str] = []
    for _ in range(3):
        ended += store.reap().ended
        pass_time(client, POLICY.reap_every_s)
    assert sorted(ended) == sorted(jobs)
    assert store.depth("default") == 0
    record = store.get(jobs[0])
    assert record is not None
    assert record.status is JobStatus.FAILED


def test_every_script_says_what_it_takes_and_returns() -> None:
    scripts = [path for path in (resources.files("services.adapters") / "lua").iterdir() if "prelude" not in path.name]
    assert scripts
    for script in scripts:
        text = script.read_text()
        assert re.match(
            r"#!lua( flags=(allow-oom|no-writes))?\n-- .*(\n-- .*)*\n-- ARGV: .*(\n--   .*)*\n-- Returns ", text
        ), script.name
