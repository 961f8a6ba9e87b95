"""A job store to be tested, with its clock in the test's hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis

from services.adapters.redis_jobs import RedisJobStore
from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.ports import JobStore, Reaped
from services.jobs.record import Claim, JobRecord, Size
from tests.services.adapters.valkey import pass_time
from tests.services.jobs.samples import new_job

POLICY = JobPolicy(lease_s=15, retention_s=3_600, max_queued=50)
COST_OF = {Size.SMALL: POLICY.small_cost, Size.LARGE: POLICY.small_cost + 1}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Bench:
    """`advance` moves the store's clock; `rounds` is what the reaper did."""

    store: JobStore
    advance: Callable[[float], None]
    rounds: list[Reaped] = field(default_factory=list)

    def submit(self, owner: str = "ada", size: Size = Size.SMALL, **spec: Any) -> str:
        return self.store.create(new_job(owner, cost=COST_OF[size], **spec)).id

    def claim(self, worker: str = "w1", sizes: Sequence[Size] = tuple(Size)) -> Claim:
        claim = self.store.claim("default", worker, sizes)
        assert claim is not None
        return claim

    def claimed(self, worker: str = "w1", sizes: Sequence[Size] = tuple(Size)) -> str | None:
        claim = self.store.claim("default", worker, sizes)
        return None if claim is None else claim.job.id

    def record(self, job_id: str) -> JobRecord:
        record = self.store.get(job_id)
        assert record is not None
        return record

    def reap_after(self, seconds: float) -> Reaped:
        """The reaper goes round while `seconds` pass; what its last round did."""
        while seconds > 0:
            step = min(seconds, POLICY.reap_every_s)
            self.advance(step)
            self.rounds.append(self.store.reap())
            seconds -= step
        return self.rounds[-1]

    def lose_worker(self) -> Reaped:
        """Time passes without a heartbeat until leases have expired and been reaped."""
        before = len(self.rounds)
        self.reap_after(POLICY.lease_s + POLICY.reap_every_s)
        rounds = self.rounds[before:]
        return Reaped(
            handed_back=tuple(job_id for each in rounds for job_id in each.handed_back),
            ended=tuple(job_id for each in rounds for job_id in each.ended),
        )


def memory_bench(policy: JobPolicy = POLICY) -> Bench:
    clock = Clock()
    return Bench(MemoryJobStore(policy, clock), clock.advance)


def valkey_bench(client: Redis, policy: JobPolicy = POLICY) -> Bench:
    return Bench(RedisJobStore(client, policy), lambda seconds: pass_time(client, seconds))
