"""The life of jobs as a state machine: whatever happens in whatever order, the promises hold, and the fake and the real
store say the same.

The machine knows nothing of how a store works. It remembers what it saw, and checks that a job ends once and stays as
it ended, that at most one claim of a job holds, that attempts only grow, and that no job is lost: in the end all are
done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from services.adapters.redis_client import make_client
from services.contracts.errors import Conflict, ErrorCode
from services.contracts.job import JobError, JobProgress, JobStatus
from services.jobs.policy import JobPolicy
from services.jobs.ports import JobFilter, JobStore
from services.jobs.record import Cancelled, Claim, Ending, Failed, JobRecord, Size
from tests.services.jobs.bench import COST_OF, memory_bench, valkey_bench
from tests.services.jobs.samples import DONE, new_job

# Time moves in tens of seconds and every bound is a five: the real server's own clock, which runs on, decides nothing.
POLICY = JobPolicy(
    lease_s=145, reap_every_s=15, ring_after_s=25, sweep_every_s=595, retention_s=1_995, max_blamed=2, max_unexplained=2
)
ENDINGS = (DONE, Failed(JobError(code=ErrorCode.METHOD_FAILED, message="no")), Cancelled())
MAX_LIVING = 3
"""Few jobs at a time, so that much happens to each."""
WORKERS = ("w1", "w2")
SIZES = ((Size.SMALL, Size.LARGE), (Size.LARGE, Size.SMALL), (Size.SMALL,), (Size.LARGE,))


@dataclass
class Claims:
    """The same claim from both stores."""

    fake: Claim
    real: Claim


@dataclass
class Seen:
    """What the machine has seen of one job."""

    size: Size
    attempt: int = 0
    claims: list[Claims] = field(default_factory=list)
    ended: dict[str, Any] | None = None


class LifeOfJobs(RuleBasedStateMachine):
    """Every rule does the same to both stores and compares what they say."""

    client: Redis
    jobs: Bundle[str] = Bundle("jobs")
    claims: Bundle[Claims] = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.client.flushall()
        self.fake = memory_bench(POLICY)
        self.real = valkey_bench(self.client, POLICY)
        self.seen: dict[str, Seen] = {}

    @property
    def stores(self) -> tuple[JobStore, JobStore]:
        return self.fake.store, self.real.store

    @precondition(lambda self: sum(seen.ended is None for seen in self.seen.values()) < MAX_LIVING)
    @rule(
        target=jobs,
        owner=st.sampled_from(["ada", "bob"]),
        priority=st.sampled_from(["interactive", "batch"]),
        size=st.sampled_from(Size),
        deadline_s=st.sampled_from([None, None, 195.0, 395.0]),
    )
    def create(self, owner: str, priority: str, size: Size, deadline_s: float | None) -> str:
        job = new_job(owner, cost=COST_OF[size], priority=priority, deadline_s=deadline_s)
        self.agree(*(state_of(store.create(job)) for store in self.stores))
        self.seen[job.id] = Seen(size)
        return job.id

    @rule(target=claims, worker=st.sampled_from(WORKERS), sizes=st.sampled_from(SIZES))
    def claim(self, worker: str, sizes: Sequence[Size]) -> Any:
        fake, real = (store.claim("default", worker, sizes) for store in self.stores)
        if fake is None or real is None:
            assert fake is real
            assert not any(seen.size in sizes and self.waits(job_id) for job_id, seen in self.seen.items())
            return multiple()
        self.agree((state_of(fake.job), fake.alone, fake.spec), (state_of(real.job), real.alone, real.spec))
        seen = self.seen[fake.job.id]
        assert fake.attempt > seen.attempt
        assert fake.size == real.size == seen.size
        assert seen.size in sizes
        seen.attempt = fake.attempt
        seen.claims.append(Claims(fake, real))
        return seen.claims[-1]

    @rule(claims=claims)
    def execute(self, claims: Claims) -> None:
        self.fake.store.executing(claims.fake.worker, [claims.fake])
        self.real.store.executing(claims.real.worker, [claims.real])

    @rule(rounds=st.sampled_from([1, 3, 9]))
    def nobody_beats_while_the_reaper_goes_round(self, rounds: int) -> None:
        """Nine rounds are longer than a lease."""
        for _ in range(rounds):
            self.time_passes(20)
            self.reap()

    @rule(target=claims, worker=st.sampled_from(WORKERS))
    def a_worker_dies_over_the_next_job(self, worker: str) -> Any:
        claims = self.claim(worker, tuple(Size))
        if isinstance(claims, Claims):
            self.execute(claims)
        self.nobody_beats_while_the_reaper_goes_round(9)
        return claims

    @rule(worker=st.sampled_from(WORKERS))
    def idle(self, worker: str) -> None:
        for store in self.stores:
            store.executing(worker, [])

    @rule(job_id=jobs)
    def all_its_workers_beat(self, job_id: str) -> None:
        held = 0
        for claims in self.seen[job_id].claims if job_id in self.seen else ():
            fake = self.fake.store.heartbeat([claims.fake])[job_id]
            self.agree(fake, self.real.store.heartbeat([claims.real])[job_id])
            held += fake.held
        assert held <= 1

    @rule(claims=claims, done=st.integers(0, 5))
    def progress(self, claims: Claims, done: int) -> None:
        self.fake.store.progress(claims.fake, JobProgress(done=done, planned=5))
        self.real.store.progress(claims.real, JobProgress(done=done, planned=5))

    @rule(claims=claims, ending=st.sampled_from(ENDINGS), done=st.none() | st.integers(0, 5))
    def finish(self, claims: Claims, ending: Ending, done: int | None) -> None:
        progress = None if done is None else JobProgress(done=done, planned=5)
        self.agree(
            self.fake.store.finish(claims.fake, ending, progress), self.real.store.finish(claims.real, ending, progress)
        )

    @rule(claims=claims)
    def release(self, claims: Claims) -> None:
        self.fake.store.release(claims.fake)
        self.real.store.release(claims.real)

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        self.agree(*(state_of(store.cancel(job_id)) for store in self.stores))

    @rule(job_id=jobs)
    def delete(self, job_id: str) -> None:
        fake, real = (outcome_of_deleting(store, job_id) for store in self.stores)
        self.agree(fake, real)
        if isinstance(fake, dict):
            del self.seen[job_id]

    @rule(seconds=st.sampled_from([10, 20, 50, 160]))
    def time_passes(self, seconds: int) -> None:
        self.fake.advance(seconds)
        self.real.advance(seconds)

    @rule()
    def reap(self) -> None:
        fake, real = (store.reap() for store in self.stores)
        for what in ("handed_back", "ended", "forgotten"):
            self.agree(sorted(getattr(fake, what)), sorted(getattr(real, what)))
        self.agree((fake.unclaimed, fake.sweep), (real.unclaimed, real.sweep))
        for job_id in fake.forgotten:
            assert self.seen.pop(job_id).ended is not None

    @invariant()
    def both_say_the_same_and_what_has_ended_stays(self) -> None:
        self.agree(*(store.depth("default") for store in self.stores))
        self.agree(*(store.known(list(self.seen)) for store in self.stores))
        for owner in ("ada", "bob"):
            fake, real = (store.list(owner, JobFilter(), None, 100).jobs for store in self.stores)
            self.agree([job.id for job in fake], [job.id for job in real])
        for job_id, seen in self.seen.items():
            fake_record, real_record = (store.get(job_id) for store in self.stores)
            self.agree(state_of(fake_record), state_of(real_record))
            self.agree(*(store.queued_ahead(job_id) for store in self.stores))
            assert real_record is not None
            assert seen.ended is None or seen.ended == state_of(real_record)
            if real_record.status.terminal:
                seen.ended = state_of(real_record)

    def teardown(self) -> None:
        """A sound worker clears whatever is left: nothing was lost, and the lines are empty."""
        if not hasattr(self, "seen"):
            return
        for _ in range(2):
            self.nobody_beats_while_the_reaper_goes_round(9)
            for store in self.stores:
                while claim := store.claim("default", "sound", tuple(Size)):
                    assert store.finish(claim, DONE)
        self.both_say_the_same_and_what_has_ended_stays()
        assert all(seen.ended is not None for seen in self.seen.values())
        assert [store.depth("default") for store in self.stores] == [0, 0]
        assert not self.client.keys("lensd:line:*")
        assert not self.client.keys("lensd:turns:*")
        assert not self.client.keys("lensd:living:*")
        assert not self.client.keys("lensd:running:*")
        assert not self.client.zcard("lensd:leases")

    def waits(self, job_id: str) -> bool:
        record = self.fake.store.get(job_id)
        return record is not None and record.status is JobStatus.QUEUED

    def agree(self, fake: object, real: object) -> None:
        assert fake == real


def state_of(record: JobRecord | None) -> dict[str, Any] | None:
    """A record without its times, which differ by the milliseconds that the real server took."""
    if record is None:
        return None
    times = {"created_at", "deadline_at", "started_at", "finished_at", "expires_at"}
    return record.model_dump(exclude=times) | {name: getattr(record, name) is not None for name in times}


def outcome_of_deleting(store: JobStore, job_id: str) -> object:
    try:
        return state_of(store.delete(job_id))
    except Conflict as conflict:
        return conflict.code


def test_the_promises_hold_whatever_happens_and_the_fake_is_like_the_real_store(redis_url: str) -> None:
    with make_client(redis_url, patient=False) as client:
        machine = type("LifeOfJobsOnThisServer", (LifeOfJobs,), {"client": client})
        run_state_machine_as_test(machine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None))
