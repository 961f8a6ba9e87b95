"""What every job store promises, on the fake and on a real server."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from services.contracts.errors import Conflict, ErrorCode, Refused, Unavailable
from services.contracts.job import JobError, JobProgress, JobStatus
from services.jobs.ports import JobFilter
from services.jobs.record import Cancelled, Failed, Idempotency, Size, Stop
from tests.services.jobs.bench import POLICY, Bench
from tests.services.jobs.samples import DONE, new_job

ALL = JobFilter()


def test_a_created_job_is_queued_and_can_be_read(bench: Bench) -> None:
    job = new_job(label="first", metadata={"run": "7"}, priority="batch", deadline_s=60)
    record = bench.store.create(job)
    assert record == bench.store.get(job.id)
    assert (record.status, record.kind, record.model, record.label) == ("queued", "features", "tiny", "first")
    assert (record.owner, record.priority, record.metadata, record.attempt) == ("ada", "batch", {"run": "7"}, 0)
    assert record.deadline_at == record.created_at + timedelta(seconds=60)
    assert bench.store.depth("default") == 1


def test_creating_a_job_twice_makes_one(bench: Bench) -> None:
    job = new_job()
    assert bench.store.create(job) == bench.store.create(job)
    assert bench.store.depth("default") == 1


def test_a_job_that_does_not_exist_is_none(bench: Bench) -> None:
    job_id = new_job().id
    assert bench.store.get(job_id) is None
    assert bench.store.cancel(job_id) is None
    assert bench.store.delete(job_id) is None


def test_a_full_queue_refuses_more_jobs_of_its_pool_only(bench: Bench) -> None:
    for _ in range(POLICY.max_queued):
        bench.submit()
    with pytest.raises(Unavailable) as refusal:
        bench.submit()
    assert refusal.value.code is ErrorCode.QUEUE_FULL
    assert bench.store.create(new_job(pool="other")).status is JobStatus.QUEUED


def test_the_same_request_under_an_idempotency_key_is_the_same_job(bench: Bench) -> None:
    key = Idempotency("k1", "digest-a")
    first = bench.store.create(new_job(), key)
    assert bench.store.create(new_job(), key).id == first.id
    assert bench.store.create(new_job("bob"), key).id != first.id
    with pytest.raises(Conflict) as refusal:
        bench.store.create(new_job(), Idempotency("k1", "digest-b"))
    assert refusal.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    assert bench.store.depth("default") == 2


def test_deleting_a_job_frees_its_idempotency_key(bench: Bench) -> None:
    first = bench.store.create(new_job(), Idempotency("k1", "digest-a"))
    bench.store.delete(first.id)
    assert bench.store.create(new_job(), Idempotency("k1", "digest-b")).id != first.id


def test_twenty_creations_at_once_under_one_idempotency_key_make_one_job(bench: Bench) -> None:
    with ThreadPoolExecutor(20) as threads:
        jobs = threads.map(lambda _: bench.store.create(new_job(), Idempotency("k1", "digest")), range(20))
        assert len({job.id for job in jobs}) == 1
    assert bench.store.depth("default") == 1


def test_interactive_jobs_go_before_batch_jobs(bench: Bench) -> None:
    batch = bench.submit(priority="batch")
    interactive = bench.submit()
    assert [bench.claimed(), bench.claimed(), bench.claimed()] == [interactive, batch, None]


def test_owners_take_turns_and_each_ones_jobs_keep_their_order(bench: Bench) -> None:
    ada = [bench.submit("ada") for _ in range(3)]
    bob = [bench.submit("bob") for _ in range(2)]
    eve = bench.submit("eve")
    assert [bench.claimed() for _ in range(6)] == [ada[0], bob[0], eve, ada[1], bob[1], ada[2]]


def test_a_pool_is_served_its_own_jobs_only(bench: Bench) -> None:
    bench.submit()
    assert bench.store.claim("other", "w1", tuple(Size)) is None


def test_a_claim_carries_what_the_job_computes_on(bench: Bench) -> None:
    job = new_job()
    bench.store.create(job)
    claim = bench.claim("w1")
    assert (claim.spec, claim.inputs, claim.worker, claim.attempt, claim.alone) == (
        job.spec,
        job.inputs,
        "w1",
        1,
        False,
    )
    assert (claim.job.status, claim.job.attempt) == ("running", 1)
    assert claim.job.started_at is not None
    assert claim.job == bench.store.get(job.id)


def test_many_threads_claim_every_job_once(bench: Bench) -> None:
    jobs = {bench.submit(owner) for owner in ("ada", "bob", "eve", "joe") for _ in range(10)}
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda i: bench.claimed(f"w{i % 8}"), range(40)))
    assert sorted(job_id for job_id in claimed if job_id) == sorted(jobs)


def test_a_finished_job_has_its_result_and_its_time_is_limited(bench: Bench) -> None:
    job_id = bench.submit()
    assert bench.store.finish(bench.claim(), DONE)
    record = bench.record(job_id)
    assert (record.status, record.result, record.error) == ("succeeded", DONE.result, None)
    assert record.finished_at is not None
    assert record.expires_at == record.finished_at + timedelta(seconds=POLICY.retention_s)


def test_a_failed_job_has_its_error(bench: Bench) -> None:
    job_id = bench.submit()
    error = JobError(code=ErrorCode.METHOD_FAILED, message="no", correlation_id="c1")
    assert bench.store.finish(bench.claim(), Failed(error))
    assert (bench.record(job_id).status, bench.record(job_id).error) == ("failed", error)


def test_finishing_again_is_harmless_and_changes_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim()
    assert bench.store.finish(claim, DONE)
    ended = bench.record(job_id)
    assert bench.store.finish(claim, DONE)
    assert not bench.store.finish(claim, Cancelled())
    assert bench.record(job_id) == ended


def test_progress_is_recorded_while_the_claim_holds(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim()
    bench.store.progress(claim, JobProgress(done=3, planned=10))
    assert bench.record(job_id).progress == JobProgress(done=3, planned=10)
    bench.store.finish(claim, DONE)
    bench.store.progress(claim, JobProgress(done=9, planned=10))
    assert bench.record(job_id).progress == JobProgress(done=3, planned=10)


def test_the_last_progress_comes_with_the_end(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim()
    version = bench.record(job_id).version
    assert bench.store.finish(claim, DONE, JobProgress(done=10, planned=10))
    record = bench.record(job_id)
    assert (record.status, record.progress) == ("succeeded", JobProgress(done=10, planned=10))
    assert record.version == version + 1


def test_a_claim_that_is_lost_cannot_record_progress_with_an_end(bench: Bench) -> None:
    job_id = bench.submit()
    late = bench.claim()
    bench.store.release(late)
    current = bench.claim()
    assert not bench.store.finish(late, DONE, JobProgress(done=9, planned=10))
    assert bench.record(job_id).progress == JobProgress(done=0, planned=0)
    assert bench.store.finish(current, DONE)


def test_a_queued_job_is_cancelled_at_once(bench: Bench) -> None:
    job_id = bench.submit()
    record = bench.store.cancel(job_id)
    assert record is not None
    assert record.status is JobStatus.CANCELLED
    assert bench.claimed() is None
    assert bench.store.depth("default") == 0


def test_a_running_job_is_asked_to_stop_and_ends_cancelled(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim()
    record = bench.store.cancel(job_id)
    assert record is not None
    assert (record.status, record.cancel_requested) == ("running", True)
    assert bench.store.heartbeat([claim])[job_id].stop is Stop.CANCELLED
    assert bench.store.finish(claim, Cancelled())
    assert bench.record(job_id).status is JobStatus.CANCELLED


def test_cancelling_an_ended_job_changes_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    bench.store.finish(bench.claim(), DONE)
    ended = bench.record(job_id)
    assert bench.store.cancel(job_id) == ended


def test_a_queued_or_ended_job_can_be_forgotten_a_running_one_not(bench: Bench) -> None:
    running, queued = bench.submit("ada"), bench.submit("bob")
    claim = bench.claim()
    with pytest.raises(Conflict) as refusal:
        bench.store.delete(running)
    assert refusal.value.code is ErrorCode.JOB_RUNNING
    assert bench.store.delete(queued) is not None
    bench.store.finish(claim, DONE)
    forgotten = bench.store.delete(running)
    assert forgotten is not None
    assert forgotten.result == DONE.result
    assert bench.claimed() is None
    assert bench.store.list("ada", ALL, None, 10).jobs == ()
    assert bench.store.known([running, queued]) == frozenset()


def test_jobs_past_their_retention_are_forgotten_and_named(bench: Bench) -> None:
    kept = bench.submit("ada", priority="batch")
    expired = bench.submit("ada")
    bench.store.finish(bench.claim(), DONE)
    bench.advance(POLICY.retention_s)
    assert bench.store.reap().forgotten == (expired,)
    assert bench.store.known([kept, expired]) == {kept}
    assert [job.id for job in bench.store.list("ada", ALL, None, 10).jobs] == [kept]


def test_a_listing_pages_through_the_owners_jobs_newest_first(bench: Bench) -> None:
    jobs = [bench.submit("ada") for _ in range(5)]
    bench.submit("bob")
    first = bench.store.list("ada", ALL, None, 2)
    second = bench.store.list("ada", ALL, first.cursor, 2)
    third = bench.store.list("ada", ALL, second.cursor, 2)
    assert [job.id for page in (first, second, third) for job in page.jobs] == jobs[::-1]
    assert first.cursor is not None
    assert second.cursor is not None
    assert third.cursor is None


def test_the_last_page_has_no_cursor_even_when_it_is_full(bench: Bench) -> None:
    for _ in range(4):
        bench.submit()
    page = bench.store.list("ada", ALL, bench.store.list("ada", ALL, None, 2).cursor, 2)
    assert len(page.jobs) == 2
    assert page.cursor is None


def test_a_listing_is_filtered_by_status_kind_and_label(bench: Bench) -> None:
    done = bench.submit(label="a")
    bench.store.finish(bench.claim(), DONE)
    waiting = bench.submit(label="b")
    found = {
        name: [job.id for job in bench.store.list("ada", where, None, 10).jobs]
        for name, where in {
            "queued": JobFilter(status=JobStatus.QUEUED),
            "label a": JobFilter(label="a"),
            "features": JobFilter(kind="features"),
            "patching": JobFilter(kind="patching"),
        }.items()
    }
    assert found == {"queued": [waiting], "label a": [done], "features": [waiting, done], "patching": []}


def test_a_cursor_that_is_not_ours_is_refused(bench: Bench) -> None:
    for cursor in ("nonsense", "Jyc=", "é", ""):
        with pytest.raises(Refused) as refusal:
            bench.store.list("ada", ALL, cursor, 2)
        assert refusal.value.code is ErrorCode.INVALID_REQUEST


def test_a_store_that_answers_says_so(bench: Bench) -> None:
    bench.store.ping()
