"""Which job answers which question, on the fake and on a real server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from services.adapters.redis_cache import RedisResultCache
from services.adapters.redis_client import make_client
from services.contracts.errors import Conflict, ErrorCode
from services.contracts.job import JobProgress, JobStatus
from services.jobs.cache import ResultCache
from services.jobs.limits import OwnerLimits
from services.jobs.memory import MemoryJobStore, MemoryResultCache
from services.jobs.ports import JobFilter
from services.jobs.record import WORKER_LOST as LOST
from services.jobs.record import (
    Cancelled,
    Failed,
    Idempotency,
    JobRecord,
    NewJob,
    StoredResult,
    Succeeded,
    Ties,
)
from tests.services.jobs.bench import POLICY, Bench, memory_bench, valkey_bench
from tests.services.jobs.samples import new_job

FEW = replace(POLICY, max_answers=4)
ENTRY = "question:made-so"
RESULT = StoredResult(document='{"kind":"features"}')
COPY = StoredResult(document='{"kind":"features","copied":true}')
MADE_SO = Succeeded(RESULT, "made-so")


@dataclass
class Desk:
    """A result cache and the jobs that it is about."""

    bench: Bench
    results: ResultCache

    def asked(self, entry: str = ENTRY, **job: Any) -> NewJob:
        return new_job(**job).model_copy(update={"ties": Ties(cache_entry=entry)})

    def run(self, ending: Any = MADE_SO, entry: str = ENTRY) -> JobRecord:
        """A job from its creation to `ending`."""
        job = self.asked(entry)
        self.bench.store.create(job)
        claim = self.bench.claim()
        assert claim.job.id == job.id
        assert self.bench.store.finish(claim, ending, JobProgress(done=3, planned=3))
        return self.bench.record(job.id)

    def found(self, entry: str = ENTRY) -> str | None:
        source = self.results.find(self.asked(entry))
        return None if source is None else source.id

    def answered(self, job: NewJob, idempotency: Idempotency | None = None) -> JobRecord | None:
        source = self.results.find(job, idempotency)
        return None if source is None else self.results.answer(job, source, COPY, idempotency)


@pytest.fixture(params=["memory", "valkey"])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    if request.param == "memory":
        bench = memory_bench()
        assert isinstance(bench.store, MemoryJobStore)
        yield Desk(bench, MemoryResultCache(bench.store, FEW))
        return
    with make_client(request.getfixturevalue("redis_url"), patient=False) as client:
        yield Desk(valkey_bench(client), RedisResultCache(client, FEW))


def test_a_job_that_succeeded_answers_its_question_and_no_other(desk: Desk) -> None:
    assert desk.found() is None
    source = desk.run()
    assert desk.results.find(desk.asked()) == source
    assert source.result == RESULT
    assert desk.found("another:made-so") is None
    assert desk.found("question:made-otherwise") is None


@pytest.mark.parametrize("ending", [Failed(LOST), Cancelled(), Succeeded(RESULT), Succeeded(RESULT, "made-otherwise")])
def test_a_job_that_did_not_succeed_as_its_entry_says_answers_nothing(desk: Desk, ending: Any) -> None:
    desk.run(ending)
    assert desk.found() is None
    assert desk.found("question:made-otherwise") is None


def test_a_job_without_an_entry_neither_finds_nor_answers(desk: Desk) -> None:
    job = new_job()
    desk.bench.store.create(job)
    desk.bench.store.finish(desk.bench.claim(), MADE_SO)
    assert desk.results.find(new_job()) is None
    assert desk.found() is None


def test_an_answered_job_has_ended_when_it_is_made(desk: Desk) -> None:
    source = desk.run()
    job = desk.asked(label="again", metadata={"run": "2"}, priority="batch", deadline_s=60)
    record = desk.answered(job)
    assert record == desk.bench.record(job.id)
    assert record is not None
    assert (record.status, record.cached, record.result, record.attempt) == ("succeeded", True, COPY, 0)
    assert (record.label, record.metadata, record.priority) == ("again", {"run": "2"}, "batch")
    assert record.started_at is None
    assert record.created_at == record.finished_at
    assert record.progress == source.progress == JobProgress(done=3, planned=3)
    assert (record.fingerprint, source.fingerprint) == (None, "made-so")
    assert not source.cached
    assert record.expires_at is not None
    assert (record.expires_at - record.created_at).total_seconds() == POLICY.retention_s
    assert desk.bench.store.depth("default") == 0
    assert desk.bench.claimed() is None
    listed = desk.bench.store.list("ada", JobFilter(), None, 10).jobs
    assert [(summary.id, summary.cached) for summary in listed] == [(job.id, True), (source.id, False)]


def test_an_answer_costs_nothing_and_no_limit_of_its_owner_refuses_it(desk: Desk) -> None:
    desk.run()
    nothing = OwnerLimits(jobs=0, running=1, queue_share=0.01, daily_token_layers=1)
    for _ in range(3):
        record = desk.answered(desk.asked().model_copy(update={"limits": nothing}))
        assert record is not None
    one_job = OwnerLimits(jobs=1, daily_token_layers=2 * 60)
    assert desk.bench.store.create(new_job().model_copy(update={"limits": one_job})).status is JobStatus.QUEUED


def test_the_latest_job_answers_and_an_answered_one_never_does(desk: Desk) -> None:
    desk.run()
    later = desk.run()
    assert desk.answered(desk.asked()) is not None
    assert desk.found() == later.id


def test_an_entry_dies_with_its_job_and_what_was_answered_stays(desk: Desk) -> None:
    source = desk.run()
    copy = desk.answered(desk.asked())
    assert copy is not None
    desk.bench.store.delete(source.id)
    assert desk.found() is None
    assert desk.bench.record(copy.id).result == COPY
    desk.run()
    desk.bench.reap_after(POLICY.retention_s + POLICY.reap_every_s)
    assert desk.found() is None


def test_an_earlier_job_leaves_a_later_ones_entry_alone_when_it_goes(desk: Desk) -> None:
    earlier, later = desk.run(), desk.run()
    desk.bench.store.delete(earlier.id)
    assert desk.found() == later.id


def test_a_job_that_goes_while_its_result_is_copied_answers_nothing(desk: Desk) -> None:
    source, job = desk.run(), desk.asked()
    assert desk.results.find(job) == source
    desk.bench.store.delete(source.id)
    assert desk.results.answer(job, source, COPY) is None
    assert desk.bench.store.get(job.id) is None
    assert desk.bench.store.known([job.id]) == {job.id}, "copies may lie there, and it runs all the same"


def test_blobs_that_come_before_their_record_are_spared_by_the_sweep(desk: Desk) -> None:
    job = desk.asked()
    desk.run()
    assert desk.bench.store.known([job.id]) == frozenset()
    source = desk.results.find(job)
    assert source is not None
    assert desk.bench.store.known([job.id]) == {job.id}
    desk.results.answer(job, source, COPY)
    desk.bench.store.delete(job.id)
    assert desk.bench.store.known([job.id]) == frozenset()


def test_only_what_was_found_is_answered(desk: Desk) -> None:
    source = desk.run()
    assert desk.results.answer(desk.asked(), source, COPY) is None, "nothing spares its blobs"


def test_answering_twice_makes_one_job(desk: Desk) -> None:
    source, job = desk.run(), desk.asked()
    desk.results.find(job)
    first = desk.results.answer(job, source, COPY)
    assert first is not None
    assert desk.results.answer(job, source, COPY) == first
    assert desk.results.find(job) is None, "it is there already"


def test_an_idempotency_key_is_reserved_with_an_answer(desk: Desk) -> None:
    desk.run()
    key, other = Idempotency("k1", "digest-a"), Idempotency("k1", "digest-b")
    first = desk.answered(desk.asked(), key)
    assert first is not None
    assert desk.answered(desk.asked(), key) is None, "the key is taken, and creation says by whom"
    assert desk.bench.store.create(desk.asked(), key).id == first.id
    with pytest.raises(Conflict) as refusal:
        desk.bench.store.create(desk.asked(), other)
    assert refusal.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    desk.bench.store.delete(first.id)
    assert desk.answered(desk.asked(), other) is not None


def test_a_key_that_is_taken_while_a_result_is_copied_is_replayed_or_refused(desk: Desk) -> None:
    key = Idempotency("k1", "digest-a")
    source, first, second, third = desk.run(), desk.asked(), desk.asked(), desk.asked()
    for job in (first, second, third):
        desk.results.find(job, key)
    made = desk.results.answer(first, source, COPY, key)
    assert made is not None
    assert desk.results.answer(second, source, COPY, key) == made
    with pytest.raises(Conflict):
        desk.results.answer(third, source, COPY, Idempotency("k1", "digest-b"))
    assert desk.bench.store.get(second.id) is desk.bench.store.get(third.id) is None


def test_twenty_answers_at_once_under_one_key_make_one_job(desk: Desk) -> None:
    source, key = desk.run(), Idempotency("k1", "digest-a")
    jobs = [desk.asked() for _ in range(20)]
    for job in jobs:
        desk.results.find(job, key)
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda job: desk.results.answer(job, source, COPY, key), jobs))
    assert len({record.id for record in made if record is not None}) == 1
    assert len(desk.bench.store.list("ada", JobFilter(), None, 50).jobs) == 2


def test_an_owner_has_only_so_many_answers_at_a_time(desk: Desk) -> None:
    desk.run()
    answers = [desk.answered(desk.asked()) for _ in range(FEW.max_answers + 1)]
    assert [answer is not None for answer in answers] == [*[True] * FEW.max_answers, False]
    assert desk.answered(desk.asked(owner="bob")) is not None
    assert answers[0] is not None
    desk.bench.store.delete(answers[0].id)
    assert desk.answered(desk.asked()) is not None
    desk.bench.reap_after(POLICY.retention_s + POLICY.reap_every_s)
    desk.run()
    assert desk.answered(desk.asked()) is not None


def test_an_answered_job_has_its_ties_but_for_the_entry(redis_url: str) -> None:
    with make_client(redis_url, patient=False) as client:
        desk = Desk(valkey_bench(client), RedisResultCache(client, POLICY))
        desk.run()
        job = desk.asked().model_copy(update={"ties": Ties(cache_entry=ENTRY, batch="batch_1", webhook="wh_1")})
        assert desk.answered(job) is not None
        assert client.hmget(f"lensd:job:{job.id}", "batch", "webhook", "cache_entry") == [b"batch_1", b"wh_1", None]
        assert client.exists(f"lensd:arriving:{job.id}") == 0


def test_what_the_fake_tells_of_an_answered_jobs_end_has_its_ties() -> None:
    bench = memory_bench()
    assert isinstance(bench.store, MemoryJobStore)
    desk, told = Desk(bench, MemoryResultCache(bench.store, POLICY)), []
    bench.store.on_end.append(lambda job, record: told.append((job.ties.batch, record.status, record.cached)))
    desk.run()
    desk.answered(desk.asked().model_copy(update={"ties": Ties(cache_entry=ENTRY, batch="batch_1")}))
    assert told == [(None, "succeeded", False), ("batch_1", "succeeded", True)]


def test_a_store_that_is_short_of_memory_answers_nothing(redis_url: str) -> None:
    with make_client(redis_url, patient=False) as client:
        desk = Desk(valkey_bench(client), RedisResultCache(client, replace(POLICY, max_memory=1e-9)))
        desk.run()
        assert desk.found() is None
