"""How many jobs are ahead of a queued one, on the fake and on a real server."""

import random
from collections.abc import Iterator

import pytest

from services.adapters.redis_client import make_client
from services.jobs.policy import JobPolicy
from services.jobs.record import Size
from tests.services.jobs.bench import Bench, memory_bench, valkey_bench
from tests.services.jobs.samples import DONE

SMALL_ONLY = (Size.SMALL,)
CROWD = 600
"""Owners, more than the script looks at."""


@pytest.fixture(params=["memory", "valkey"])
def roomy_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    policy = JobPolicy(max_queued=4 * CROWD)
    if request.param == "memory":
        yield memory_bench(policy)
        return
    with make_client(request.getfixturevalue("redis_url"), patient=False) as client:
        yield valkey_bench(client, policy)


@pytest.mark.parametrize("seed", range(4))
def test_while_no_more_come_each_job_starts_after_as_many_as_were_ahead_of_it(roomy_bench: Bench, seed: int) -> None:
    bench, draw = roomy_bench, random.Random(seed)
    queued: list[str] = []
    for _ in range(40):
        owner, priority = draw.choice(["ada", "ada", "bob", "eve", "kay"]), draw.choice(["interactive", "batch"])
        queued.append(bench.submit(owner, priority=priority))
        if draw.random() < 0.3:
            queued.remove(bench.claim(sizes=SMALL_ONLY).job.id)
    ahead = {job_id: bench.store.queued_ahead(job_id) for job_id in queued}
    started = [bench.claimed(sizes=SMALL_ONLY) for _ in queued]
    assert ahead == {job_id: started.index(job_id) for job_id in queued}


def test_a_single_job_is_held_up_by_one_job_of_anothers_backlog(bench: Bench) -> None:
    backlog = [bench.submit("ada") for _ in range(10)]
    single = bench.submit("bob")
    assert [bench.store.queued_ahead(job_id) for job_id in (*backlog[:3], single)] == [0, 2, 3, 1]


def test_every_interactive_job_is_ahead_of_a_batch_job(bench: Bench) -> None:
    batch = bench.submit("ada", priority="batch")
    for owner in ("ada", "bob", "bob"):
        for size in Size:
            bench.submit(owner, size)
    assert bench.store.queued_ahead(batch) == 6


@pytest.mark.parametrize("size", Size)
def test_jobs_of_the_other_size_are_not_ahead(bench: Bench, size: Size) -> None:
    for other in Size:
        bench.submit("ada", other)
    assert bench.store.queued_ahead(bench.submit("ada", size)) == 1


def test_a_job_handed_back_is_at_the_head_of_its_owners_line_again(bench: Bench) -> None:
    first, _ = bench.submit("ada"), bench.submit("ada")
    claim = bench.claim()
    assert claim.job.id == first
    bench.store.release(claim)
    assert bench.store.queued_ahead(first) == 0


def test_nothing_is_ahead_of_a_job_that_is_not_queued(bench: Bench) -> None:
    running, cancelled = bench.submit(), bench.submit()
    claim = bench.claim()
    bench.store.cancel(cancelled)
    assert [bench.store.queued_ahead(job_id) for job_id in (running, cancelled, "job_unknown")] == [None] * 3
    bench.store.finish(claim, DONE)
    assert bench.store.queued_ahead(running) is None


def test_a_crowd_of_owners_is_counted(roomy_bench: Bench) -> None:
    for number in range(CROWD):
        roomy_bench.submit(f"owner-{number}")
    last, batch = roomy_bench.submit("ada"), roomy_bench.submit("ada", priority="batch")
    assert [roomy_bench.store.queued_ahead(job_id) for job_id in (last, batch)] == [CROWD, CROWD + 1]


def test_no_more_jobs_are_ahead_than_wait(roomy_bench: Bench) -> None:
    for _ in range(50):
        roomy_bench.submit("kay")
    for number in range(CROWD):
        roomy_bench.submit(f"owner-{number}")
    assert roomy_bench.store.queued_ahead(roomy_bench.submit("ada", priority="batch")) == 50 + CROWD
