"""Small and large jobs wait in lines of their own, on the fake and on a real server."""

import pytest

from services.contracts.errors import Conflict, Unavailable
from services.contracts.job import JobStatus
from services.jobs.policy import JobPolicy
from services.jobs.record import Size, Stop
from tests.services.jobs.bench import POLICY, Bench
from tests.services.jobs.samples import DONE

SMALL_ONLY = (Size.SMALL,)
LARGE_FIRST = (Size.LARGE, Size.SMALL)
SMALL_FIRST = (Size.SMALL, Size.LARGE)


def test_a_job_is_small_up_to_the_policys_bound() -> None:
    policy = JobPolicy(small_cost=100)
    assert [policy.size_of(cost) for cost in (0, 100, 101)] == [Size.SMALL, Size.SMALL, Size.LARGE]


@pytest.mark.parametrize("size", Size)
def test_a_claim_says_its_jobs_size(bench: Bench, size: Size) -> None:
    bench.submit(size=size)
    assert bench.claim().size is size


def test_of_equal_priority_the_size_named_first_goes_first(bench: Bench) -> None:
    large = [bench.submit(size=Size.LARGE) for _ in range(2)]
    small = [bench.submit(size=Size.SMALL) for _ in range(2)]
    assert bench.claimed(sizes=SMALL_FIRST) == small[0]
    assert bench.claimed(sizes=LARGE_FIRST) == large[0]
    assert bench.claimed(sizes=LARGE_FIRST) == large[1]
    assert bench.claimed(sizes=LARGE_FIRST) == small[1]


def test_an_interactive_job_of_the_second_size_goes_before_a_batch_job_of_the_first(bench: Bench) -> None:
    batch = bench.submit(size=Size.SMALL, priority="batch")
    interactive = bench.submit(size=Size.LARGE)
    assert [bench.claimed(sizes=SMALL_FIRST) for _ in range(2)] == [interactive, batch]


def test_a_worker_that_takes_small_jobs_only_leaves_large_ones_in_line(bench: Bench) -> None:
    large = bench.submit("ada", Size.LARGE)
    small_batch = bench.submit("ada", Size.SMALL, priority="batch")
    assert [bench.claimed(sizes=SMALL_ONLY) for _ in range(2)] == [small_batch, None]
    assert (bench.record(large).status, bench.store.depth("default")) == ("queued", 1)
    assert bench.claimed() == large


def test_owners_take_turns_in_each_size(bench: Bench) -> None:
    ada = [bench.submit("ada", Size.LARGE) for _ in range(2)]
    bob = [bench.submit("bob", Size.SMALL) for _ in range(2)]
    eve = [bench.submit("eve", size) for size in (Size.LARGE, Size.SMALL)]
    assert [bench.claimed(sizes=LARGE_FIRST) for _ in range(6)] == [ada[0], eve[0], ada[1], bob[0], eve[1], bob[1]]


def test_a_job_handed_back_keeps_its_size_and_its_place(bench: Bench) -> None:
    job_id, later = bench.submit(size=Size.LARGE), bench.submit(size=Size.LARGE)
    bench.store.release(bench.claim())
    assert bench.claimed(sizes=SMALL_ONLY) is None
    claim = bench.claim("w1", sizes=LARGE_FIRST)
    assert (claim.job.id, claim.size, claim.attempt) == (job_id, Size.LARGE, 2)
    assert bench.lose_worker().handed_back == (job_id,)
    assert bench.claimed(sizes=SMALL_ONLY) is None
    assert [bench.claimed() for _ in range(3)] == [job_id, later, None]


def test_a_large_job_revived_by_its_own_worker_leaves_the_line(bench: Bench) -> None:
    job_id = bench.submit(size=Size.LARGE)
    claim = bench.claim()
    bench.lose_worker()
    assert bench.store.heartbeat([claim])[job_id].held
    assert bench.claimed("w2") is None
    assert bench.store.finish(claim, DONE)


@pytest.mark.parametrize("size", Size)
def test_a_queued_job_of_either_size_can_be_cancelled_and_deleted(bench: Bench, size: Size) -> None:
    cancelled, deleted, kept = (bench.submit(size=size) for _ in range(3))
    bench.store.cancel(cancelled)
    bench.store.delete(deleted)
    assert bench.store.depth("default") == 1
    assert [bench.claimed(), bench.claimed()] == [kept, None]


@pytest.mark.parametrize("size", Size)
def test_a_running_job_of_either_size_is_asked_to_stop_and_not_deleted(bench: Bench, size: Size) -> None:
    job_id = bench.submit(size=size)
    claim = bench.claim()
    with pytest.raises(Conflict):
        bench.store.delete(job_id)
    bench.store.cancel(job_id)
    assert bench.store.heartbeat([claim])[job_id].stop is Stop.CANCELLED
    bench.store.release(claim)
    assert (bench.record(job_id).status, bench.claimed()) == (JobStatus.CANCELLED, None)


@pytest.mark.parametrize("size", Size)
def test_a_queued_job_of_either_size_fails_at_its_deadline(bench: Bench, size: Size) -> None:
    passed_over = bench.submit(size=size, deadline_s=5)
    bench.advance(6)
    assert bench.claimed() is None
    assert bench.record(passed_over).status is JobStatus.FAILED
    reaped = bench.submit(size=size, deadline_s=5)
    assert bench.reap_after(6).ended == (reaped,)
    assert bench.store.depth("default") == 0


def test_a_claim_of_small_jobs_leaves_a_large_one_past_its_deadline_to_the_reaper(bench: Bench) -> None:
    late = bench.submit(size=Size.LARGE, deadline_s=5)
    bench.advance(6)
    assert bench.claimed(sizes=SMALL_ONLY) is None
    assert bench.record(late).status is JobStatus.QUEUED
    assert bench.store.reap().ended == (late,)


def test_large_jobs_that_small_claims_pass_over_are_rung_for(bench: Bench) -> None:
    bench.submit(size=Size.LARGE)
    bench.submit(size=Size.SMALL)
    bench.advance(POLICY.ring_after_s)
    assert bench.claimed(sizes=SMALL_ONLY) is not None
    assert bench.claimed(sizes=SMALL_ONLY) is None
    assert bench.store.reap().unclaimed == {"default": 1}


def test_both_sizes_count_against_one_bound_of_the_queue(bench: Bench) -> None:
    for i in range(POLICY.max_queued):
        bench.submit(size=list(Size)[i % 2])
    for size in Size:
        with pytest.raises(Unavailable):
            bench.submit(size=size)
