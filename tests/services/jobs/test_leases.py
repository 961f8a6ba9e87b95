"""Leases, blame and deadlines: the job of a worker that does not come back, on the fake and on a real server."""

from services.contracts.errors import ErrorCode
from services.contracts.job import JobProgress, JobStatus
from services.jobs.record import Cancelled, Stop
from tests.services.jobs.bench import POLICY, Bench
from tests.services.jobs.samples import DONE


def test_a_claim_without_a_heartbeat_is_handed_back_after_its_lease(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim("w1")
    bench.reap_after(POLICY.lease_s - 1)
    assert bench.record(job_id).status is JobStatus.RUNNING
    assert bench.reap_after(2).handed_back == (job_id,)
    assert bench.record(job_id).status is JobStatus.QUEUED
    claim = bench.claim("w2")
    assert (claim.job.id, claim.attempt) == (job_id, 2)


def test_heartbeats_keep_a_claim(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim()
    for _ in range(5):
        bench.reap_after(POLICY.lease_s / 2)
        assert bench.store.heartbeat([claim])[job_id].held
    assert all(not each.handed_back for each in bench.rounds)
    assert bench.store.finish(claim, DONE)


def test_a_late_result_of_a_claim_that_another_worker_took_over_is_refused(bench: Bench) -> None:
    job_id = bench.submit()
    late = bench.claim("w1")
    bench.lose_worker()
    current = bench.claim("w2")
    assert not bench.store.heartbeat([late])[job_id].held
    bench.store.progress(late, JobProgress(done=1, planned=1))
    bench.store.release(late)
    assert not bench.store.finish(late, Cancelled())
    assert bench.record(job_id).progress.done == 0
    assert bench.store.finish(current, DONE)
    assert bench.record(job_id).status is JobStatus.SUCCEEDED


def test_a_heartbeat_revives_a_claim_that_nobody_took_over(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim("w1")
    assert bench.lose_worker().handed_back == (job_id,)
    assert bench.store.heartbeat([claim])[job_id].held
    assert bench.record(job_id).status is JobStatus.RUNNING
    assert bench.claimed("w2") is None
    assert bench.store.finish(claim, DONE)


def test_a_late_result_that_nobody_else_works_on_is_accepted(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim("w1")
    bench.lose_worker()
    assert bench.store.finish(claim, DONE)
    assert bench.record(job_id).status is JobStatus.SUCCEEDED
    assert bench.claimed("w2") is None


def test_a_released_job_goes_to_the_front_of_its_owners_line(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    claim = bench.claim("w1")
    bench.store.release(claim)
    assert not bench.store.heartbeat([claim])[first].held
    assert not bench.store.finish(claim, DONE)
    assert [bench.claimed("w2"), bench.claimed("w2")] == [first, second]


def test_a_released_job_is_rung_for_in_the_next_round(bench: Bench) -> None:
    bench.submit()
    bench.store.release(bench.claim())
    assert bench.store.reap().unclaimed == {"default": 1}


def test_a_job_in_the_chunk_that_killed_its_worker_runs_alone_next_time(bench: Bench) -> None:
    guilty, innocent = bench.submit("ada"), bench.submit("bob")
    claims = [bench.claim("w1"), bench.claim("w1")]
    bench.store.executing("w1", claims)
    bench.store.executing("w1", claims[:1])
    assert set(bench.lose_worker().handed_back) == {guilty, innocent}
    again = {claim.job.id: claim for claim in (bench.claim("w2"), bench.claim("w2"))}
    assert again[guilty].alone
    assert not again[innocent].alone


def test_a_job_that_kills_its_worker_three_times_fails_and_its_neighbour_does_not(bench: Bench) -> None:
    guilty, innocent = bench.submit("ada"), bench.submit("bob")
    for attempt in range(1, POLICY.max_blamed + 1):
        claims = {claim.job.id: claim for claim in (bench.claim(f"w{attempt}"), bench.claim(f"w{attempt}"))}
        bench.store.executing(f"w{attempt}", [claims[guilty]])
        bench.lose_worker()
    assert bench.record(guilty).status is JobStatus.FAILED
    error = bench.record(guilty).error
    assert error is not None
    assert error.code is ErrorCode.WORKER_LOST
    survivor = bench.claim("w9")
    assert (survivor.job.id, survivor.attempt, survivor.alone) == (innocent, POLICY.max_blamed + 1, False)


def test_a_worker_that_was_only_away_costs_its_job_nothing(bench: Bench) -> None:
    bench.submit()
    claim = bench.claim("w1")
    bench.store.executing("w1", [claim])
    for _ in range(POLICY.max_blamed + 1):
        bench.lose_worker()
        assert bench.store.heartbeat([claim])[claim.job.id].held
    bench.store.release(claim)
    assert not bench.claim("w2").alone


def test_drains_cost_no_attempt(bench: Bench) -> None:
    job_id = bench.submit()
    for _ in range(POLICY.max_unexplained + 1):
        bench.store.release(bench.claim("w1"))
    assert bench.record(job_id).status is JobStatus.QUEUED


def test_a_job_whose_workers_die_between_chunks_fails_in_the_end(bench: Bench) -> None:
    job_id = bench.submit()
    for i in range(POLICY.max_unexplained):
        assert bench.record(job_id).status is JobStatus.QUEUED
        claim = bench.claim(f"w{i}")
        bench.store.executing(f"w{i}", [claim])
        bench.store.executing(f"w{i}", [])
        bench.lose_worker()
    assert bench.record(job_id).status is JobStatus.FAILED


def test_after_an_outage_leases_get_one_more_term(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim()
    bench.store.reap()
    bench.advance(3 * POLICY.lease_s)
    assert bench.store.reap().handed_back == ()
    bench.reap_after(POLICY.lease_s - 3)
    assert bench.record(job_id).status is JobStatus.RUNNING
    assert bench.store.heartbeat([claim])[job_id].held


def test_after_an_outage_a_dead_workers_job_is_handed_back_one_term_later(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim()
    bench.store.reap()
    bench.advance(3 * POLICY.lease_s)
    bench.store.reap()
    assert bench.lose_worker().handed_back == (job_id,)


def test_a_cancelled_job_whose_worker_is_lost_ends_cancelled(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim()
    bench.store.cancel(job_id)
    assert bench.lose_worker().ended == (job_id,)
    assert bench.record(job_id).status is JobStatus.CANCELLED


def test_a_cancelled_job_that_is_released_ends_cancelled(bench: Bench) -> None:
    job_id = bench.submit()
    claim = bench.claim()
    bench.store.cancel(job_id)
    bench.store.release(claim)
    assert bench.record(job_id).status is JobStatus.CANCELLED


def test_a_queued_job_past_its_deadline_is_not_claimed_but_failed(bench: Bench) -> None:
    late, next_one = bench.submit(deadline_s=5), bench.submit()
    bench.advance(6)
    assert bench.claimed() == next_one
    error = bench.record(late).error
    assert error is not None
    assert error.code is ErrorCode.DEADLINE_EXCEEDED


def test_the_reaper_fails_queued_jobs_past_their_deadline(bench: Bench) -> None:
    late, early = bench.submit(deadline_s=5), bench.submit(deadline_s=50)
    bench.store.reap()
    assert bench.reap_after(6).ended == (late,)
    assert bench.record(late).status is JobStatus.FAILED
    assert bench.record(early).status is JobStatus.QUEUED


def test_a_running_job_past_its_deadline_is_asked_to_stop(bench: Bench) -> None:
    job_id = bench.submit(deadline_s=5)
    claim = bench.claim()
    assert bench.store.heartbeat([claim])[job_id].stop is None
    bench.reap_after(6)
    assert bench.store.heartbeat([claim])[job_id].stop is Stop.DEADLINE
    assert bench.record(job_id).status is JobStatus.RUNNING


def test_a_job_past_its_deadline_is_not_handed_back(bench: Bench) -> None:
    job_id = bench.submit(deadline_s=5)
    bench.claim()
    assert bench.lose_worker().ended == (job_id,)
    error = bench.record(job_id).error
    assert error is not None
    assert error.code is ErrorCode.DEADLINE_EXCEEDED


def test_the_reaper_goes_round_once_in_its_interval_for_all_processes(bench: Bench) -> None:
    bench.submit()
    bench.advance(POLICY.ring_after_s)
    assert bench.store.reap().unclaimed == {"default": 1}
    assert bench.store.reap().unclaimed == {}
    bench.advance(POLICY.reap_every_s)
    assert bench.store.reap().unclaimed == {"default": 1}


def test_blobs_are_swept_now_and_then(bench: Bench) -> None:
    assert bench.store.reap().sweep
    bench.advance(POLICY.reap_every_s)
    assert not bench.store.reap().sweep
    bench.advance(POLICY.sweep_every_s)
    assert bench.store.reap().sweep


def test_a_worker_that_claims_its_job_again_holds_the_new_claim_alone(bench: Bench) -> None:
    job_id = bench.submit()
    earlier = bench.claim("w1")
    bench.lose_worker()
    later = bench.claim("w1")
    assert not bench.store.heartbeat([earlier])[job_id].held
    assert not bench.store.finish(earlier, Cancelled())
    assert bench.store.finish(later, DONE)
