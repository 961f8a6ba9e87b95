"""What one owner's jobs may take up, on the fake and on a real server."""

from typing import Any

import pytest

from services.contracts.errors import ErrorCode, Limited, Unavailable
from services.contracts.job import JobError
from services.jobs.limits import OwnerLimits
from services.jobs.record import Cancelled, Failed, Idempotency, Size
from tests.services.jobs.bench import POLICY, Bench
from tests.services.jobs.samples import DONE, new_job

DAY_S = 86_400


def submit(bench: Bench, limits: OwnerLimits, owner: str = "ada", cost: int = 60, **spec: Any) -> str:
    return bench.store.create(new_job(owner, cost=cost, **spec).model_copy(update={"limits": limits})).id


def refusal(bench: Bench, limits: OwnerLimits, owner: str = "ada", cost: int = 60) -> Limited:
    with pytest.raises(Limited) as refused:
        submit(bench, limits, owner, cost)
    return refused.value


def test_an_owner_has_only_so_many_jobs_queued_and_running(bench: Bench) -> None:
    limits = OwnerLimits(jobs=3)
    for _ in range(3):
        submit(bench, limits)
    claim = bench.claim()
    assert refusal(bench, limits).code is ErrorCode.TOO_MANY_JOBS
    submit(bench, limits, "bob")
    bench.store.finish(claim, DONE)
    submit(bench, limits)
    assert refusal(bench, limits).retry_after_s > 0


def test_a_cancelled_a_deleted_and_a_lost_job_make_room(bench: Bench) -> None:
    limits = OwnerLimits(jobs=1)
    bench.store.cancel(submit(bench, limits))
    bench.store.delete(submit(bench, limits))
    submit(bench, limits, deadline_s=30)
    bench.reap_after(40)
    submit(bench, limits)
    assert refusal(bench, limits).code is ErrorCode.TOO_MANY_JOBS


def test_an_owner_fills_only_its_share_of_the_queue(bench: Bench) -> None:
    limits = OwnerLimits(queue_share=0.1)
    share = POLICY.max_queued // 10
    for index in range(share):
        submit(bench, limits, priority="batch" if index % 2 else "interactive", cost=60 + 10**6 * index)
    refused = refusal(bench, limits)
    assert (refused.code, str(share) in refused.message) == (ErrorCode.TOO_MANY_JOBS, True)
    submit(bench, limits, "bob")
    bench.claim()
    submit(bench, limits)


def test_an_owner_at_its_bound_of_running_jobs_lets_others_pass(bench: Bench) -> None:
    ada = [submit(bench, OwnerLimits(running=2)) for _ in range(4)]
    bob = submit(bench, OwnerLimits(running=2), "bob")
    claims = [bench.claim() for _ in range(3)]
    assert [claim.job.id for claim in claims] == [ada[0], bob, ada[1]]
    assert bench.claimed() is None
    bench.store.finish(claims[0], DONE)
    assert bench.claimed() == ada[2]
    bench.store.release(claims[2])
    assert bench.claimed() == ada[1]


def test_a_job_whose_worker_died_counts_no_longer_as_running(bench: Bench) -> None:
    first = submit(bench, OwnerLimits(running=1))
    second = submit(bench, OwnerLimits(running=1))
    late = bench.claim()
    assert bench.lose_worker().handed_back == (first,)
    assert bench.store.heartbeat([late])[first].held
    assert bench.claimed("w2") is None
    bench.store.finish(late, DONE)
    assert bench.claimed("w2") == second


def test_a_day_has_only_so_much_engine_work(bench: Bench) -> None:
    limits = OwnerLimits(daily_token_layers=100)
    submit(bench, limits, cost=60)
    refused = refusal(bench, limits, cost=41)
    assert refused.code is ErrorCode.QUOTA_EXCEEDED
    assert 0 < refused.retry_after_s <= DAY_S
    for figure in ("41", "60", "100", "midnight UTC"):
        assert figure in refused.message
    submit(bench, limits, cost=40)
    submit(bench, limits, "bob", cost=100)


def test_the_bill_replaces_the_estimate(bench: Bench) -> None:
    limits = OwnerLimits(daily_token_layers=100)
    submit(bench, limits, cost=90)
    claim = bench.claim()
    assert bench.store.finish(claim, DONE, bill=30)
    assert bench.store.finish(claim, DONE, bill=30)
    assert refusal(bench, limits, cost=71).code is ErrorCode.QUOTA_EXCEEDED
    submit(bench, limits, cost=70)


@pytest.mark.parametrize(
    "ending", [Failed(JobError(code=ErrorCode.METHOD_FAILED, message="no")), Cancelled()], ids=["failed", "cancelled"]
)
def test_a_job_that_ends_without_a_result_costs_what_it_ran(bench: Bench, ending: Failed | Cancelled) -> None:
    limits = OwnerLimits(daily_token_layers=100)
    submit(bench, limits, cost=90)
    bench.store.finish(bench.claim(), ending, bill=10)
    submit(bench, limits, cost=90)


def test_a_job_that_never_ran_costs_nothing(bench: Bench) -> None:
    limits = OwnerLimits(daily_token_layers=100)
    bench.store.cancel(submit(bench, limits, cost=90))
    bench.store.delete(submit(bench, limits, cost=90))
    submit(bench, limits, cost=100)


def test_a_job_lost_with_its_workers_costs_what_was_estimated(bench: Bench) -> None:
    limits = OwnerLimits(daily_token_layers=1_000)
    job_id = submit(bench, limits, cost=900)
    for _ in range(POLICY.max_blamed):
        bench.store.executing("w1", [bench.claim()])
        bench.lose_worker()
    assert bench.record(job_id).status.terminal
    assert refusal(bench, limits, cost=101).code is ErrorCode.QUOTA_EXCEEDED


def test_the_quota_is_whole_again_the_next_day(bench: Bench) -> None:
    limits = OwnerLimits(daily_token_layers=100)
    submit(bench, limits, cost=100)
    assert refusal(bench, limits).code is ErrorCode.QUOTA_EXCEEDED
    bench.advance(DAY_S)
    submit(bench, limits, cost=100)
    bench.store.finish(bench.claim(), DONE, bill=50)
    assert refusal(bench, limits).code is ErrorCode.QUOTA_EXCEEDED  # yesterday's bill is no part of today


def test_a_repeated_request_is_charged_once_and_answered_over_any_limit(bench: Bench) -> None:
    limits = OwnerLimits(jobs=1, daily_token_layers=100)
    job, key = new_job(cost=90).model_copy(update={"limits": limits}), Idempotency("k1", "digest")
    first = bench.store.create(job, key)
    assert bench.store.create(job, key).id == first.id
    assert bench.store.create(new_job(cost=90).model_copy(update={"limits": limits}), key).id == first.id
    bench.store.finish(bench.claim(), DONE, bill=90)
    submit(bench, limits, cost=10)


def test_what_an_owner_has_of_its_own_is_told_before_what_all_share(bench: Bench) -> None:
    for _ in range(POLICY.max_queued):
        bench.submit("bob")
    assert refusal(bench, OwnerLimits(jobs=0)).code is ErrorCode.TOO_MANY_JOBS
    with pytest.raises(Unavailable) as refused:
        submit(bench, OwnerLimits(jobs=1))
    assert refused.value.code is ErrorCode.QUEUE_FULL


def test_a_worker_passes_over_the_owners_it_names_for_a_size(bench: Bench) -> None:
    small, large = bench.submit("ada", Size.SMALL), bench.submit("ada", Size.LARGE)
    bob = bench.submit("bob", Size.LARGE)
    without = {Size.SMALL: ("eve",), Size.LARGE: ("ada",)}
    claims = [bench.store.claim("default", "w1", (Size.LARGE, Size.SMALL), without) for _ in range(3)]
    assert [claim and claim.job.id for claim in claims] == [bob, small, None]
    assert bench.claimed() == large


def test_jobs_of_batches_leave_half_of_the_queue_to_others(bench: Bench) -> None:
    half = POLICY.max_queued // 2
    for index in range(half):
        bench.submit(f"owner-{index % 2}", priority="batch")
    with pytest.raises(Unavailable) as refused:
        bench.submit("eve", priority="batch")
    assert refused.value.code is ErrorCode.QUEUE_FULL
    for _ in range(half):
        bench.submit("eve")
    with pytest.raises(Unavailable):
        bench.submit("eve")
    bench.claim()
    with pytest.raises(Unavailable):
        bench.submit("owner-1", priority="batch")
    bench.submit("eve")
