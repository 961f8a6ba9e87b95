"""The job store in one process, by a clock that tests may set."""

import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from services.contracts.errors import Conflict, ErrorCode, Unavailable
from services.contracts.generation import NewTokens
from services.contracts.job import JobProgress, JobStatus
from services.jobs.limits import queue_share_filled, too_many_jobs, too_many_kept
from services.jobs.memory.batches import BatchRoll, NoBatches
from services.jobs.memory.charges import Charges
from services.jobs.memory.cursor import read_cursor
from services.jobs.memory.kept import LONG_AGO, KeptJob, KeptJobs
from services.jobs.memory.pages import page_of
from services.jobs.memory.reservations import Reservations
from services.jobs.memory.rounds import Rounds
from services.jobs.memory.turns import Turns
from services.jobs.policy import JobPolicy
from services.jobs.ports import NOBODY, JobFilter, Page, Reaped
from services.jobs.record import (
    DEADLINE_EXCEEDED,
    WORKER_LOST,
    Beat,
    Cancelled,
    Claim,
    Ending,
    Failed,
    Idempotency,
    JobEvent,
    JobRecord,
    NewJob,
    Size,
    Stop,
    StoredResult,
    Succeeded,
)

KEPT_EVENTS = 64


class MemoryJobStore:
    """Implements `services.jobs.ports.JobStore`."""

    def __init__(self, policy: JobPolicy, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.events: dict[str, list[JobEvent]] = {}
        self.tokens: defaultdict[str, list[NewTokens]] = defaultdict(list)
        self.on_end: list[Callable[[NewJob, JobRecord], None]] = []
        """What the scripts do for a job's ties when it ends."""
        self.reservations = Reservations()
        self.arriving: set[str] = set()
        """Jobs whose blobs may come before their records."""
        self.batches: BatchRoll = NoBatches()
        self._policy = policy
        self.clock = clock
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._jobs = KeptJobs()
        self._turns: defaultdict[tuple[str, str, Size], Turns] = defaultdict(Turns)
        self._executing: dict[str, frozenset[tuple[str, int]]] = {}
        self._rounds = Rounds(policy)
        self._charges = Charges()

    def create(self, job: NewJob, idempotency: Idempotency | None = None) -> JobRecord:
        with self._lock:
            if job.id in self._jobs:
                return self._jobs[job.id].record
            if earlier := self.reservations.holder(job.owner, idempotency):
                return self._jobs[earlier].record
            now = self.clock()
            if self.batches.deleted(job):
                return job.queued(now)
            self._admit(job, now)
            self.batches.join(job)
            stored = self._put(job, job.queued(now), idempotency)
            self._charges.charge(job, now)
            self._line_up(stored, now)
            self._publish(stored)
            return stored.record

    def create_ended(
        self, job: NewJob, source: JobRecord, result: StoredResult, idempotency: Idempotency | None
    ) -> JobRecord:
        """Store a job whose result was there before it, as the result cache answers it."""
        with self._lock:
            earlier = job.id if job.id in self._jobs else self.reservations.holder(job.owner, idempotency)
            if earlier:
                return self._jobs[earlier].record
            self.arriving.discard(job.id)
            record = job.queued(self.clock()).model_copy(update={"version": 0, "progress": source.progress})
            stored = self._put(job, record, idempotency)
            self._end(stored, JobStatus.SUCCEEDED, result=result, cached=True)
            return stored.record

    def _put(self, job: NewJob, record: JobRecord, idempotency: Idempotency | None) -> KeptJob:
        self.reservations.take(job.owner, idempotency, job.id)
        stored = KeptJob(job, self._policy.size_of(job.cost), next(self._numbers), record)
        self._jobs[job.id] = stored
        return stored

    def _admit(self, job: NewJob, now: datetime) -> None:
        limits = job.limits
        living = len(self._jobs.living_of(job.owner))
        if limits.jobs is not None and living >= limits.jobs:
            raise too_many_jobs(living)
        self.check_kept(job.owner)
        share = math.floor(limits.queue_share * self._policy.max_queued)
        queued = sum(turns.waiting(job.owner) for (pool, *_), turns in self._turns.items() if pool == job.pool)
        if limits.queue_share < 1 and queued >= share:
            raise queue_share_filled(share)
        self._charges.admit(job, now)
        yields = self._policy.batch_share if job.spec.priority == "batch" else 1
        if self._jobs.depth(job.pool) >= self._policy.max_queued * yields:
            raise Unavailable(ErrorCode.QUEUE_FULL, "too many jobs are waiting already", retry_after_s=10)

    def check_kept(self, owner: str) -> None:
        """Raises Limited(TOO_MANY_JOBS) if no more jobs are kept for the owner."""
        if (kept := len(self._jobs.of(owner))) >= self._policy.max_kept:
            raise too_many_kept(kept)

    def get(self, job_id: str) -> JobRecord | None:
        with self._lock:
            job = self._jobs.get(job_id)
            return None if job is None else job.record

    def get_many(self, job_ids: Sequence[str]) -> Sequence[JobRecord | None]:
        return [self.get(job_id) for job_id in job_ids]

    def queued_ahead(self, job_id: str) -> int | None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.record.status is not JobStatus.QUEUED:
                return None
            ahead = self._turns_of(job).before(job.new.owner, job.number)
            if job.new.spec.priority == "batch":
                ahead += sum(len(self._turns[job.new.pool, "interactive", size]) for size in Size)
            return ahead

    def list(self, owner: str, where: JobFilter, cursor: str | None, limit: int) -> Page:
        before = None if cursor is None else read_cursor(cursor)
        with self._lock:
            found = self._jobs.older_than(before, owner, where)
        return page_of(found, limit)

    def claim(
        self, pool: str, worker: str, sizes: Sequence[Size], without: Mapping[Size, Collection[str]] = NOBODY
    ) -> Claim | None:
        with self._lock:
            for priority, size in itertools.product(("interactive", "batch"), sizes):
                may_start = partial(self._may_start, without.get(size, ()))
                while job_id := self._turns[pool, priority, size].next(may_start):
                    job = self._jobs[job_id]
                    if self._past_deadline(job):
                        self._end(job, JobStatus.FAILED, error=DEADLINE_EXCEEDED)
                    else:
                        return self._start(job, worker)
            return None

    def _may_start(self, without: Collection[str], owner: str, job_id: str) -> bool:
        bound = self._jobs[job_id].new.limits.running
        running = sum(job.record.status is JobStatus.RUNNING for job in self._jobs.living_of(owner))
        return owner not in without and (bound is None or running < bound)

    def _start(self, job: KeptJob, worker: str) -> Claim:
        job.blamed += job.suspected == "blamed"
        job.unexplained += job.suspected == "unexplained"
        job.suspected = None
        self.tokens.pop(job.record.id, None)
        job.worker = worker
        job.lease_until = self.clock() + timedelta(seconds=self._policy.lease_s)
        attempt = job.record.attempt + 1
        self._change(
            job,
            status=JobStatus.RUNNING,
            attempt=attempt,
            started_at=self.clock(),
            progress=JobProgress(done=0, planned=0),
        )
        return Claim(job.record, job.new.spec, job.new.inputs, worker, attempt, job.size, alone=job.blamed > 0)

    def executing(self, worker: str, claims: Sequence[Claim]) -> None:
        with self._lock:
            self._executing[worker] = frozenset((claim.job.id, claim.attempt) for claim in claims)

    def heartbeat(self, claims: Sequence[Claim]) -> Mapping[str, Beat]:
        with self._lock:
            return {claim.job.id: self._beat(claim) for claim in claims}

    def _beat(self, claim: Claim) -> Beat:
        job = self._held(claim)
        if job is None:
            return Beat(held=False)
        if job.record.cancel_requested:
            return Beat(held=True, stop=Stop.CANCELLED)
        return Beat(held=True, stop=Stop.DEADLINE if self._past_deadline(job) else None)

    def progress(self, claim: Claim, progress: JobProgress, tokens: Sequence[NewTokens] = ()) -> None:
        with self._lock:
            if job := self._held(claim):
                self.tokens[claim.job.id].extend(tokens)
                self._change(job, tuple(tokens), progress=progress)

    def finish(
        self, claim: Claim, ending: Ending, progress: JobProgress | None = None, bill: int | None = None
    ) -> bool:
        outcome: dict[str, Any]
        match ending:
            case Succeeded(result, fingerprint):
                status, outcome = JobStatus.SUCCEEDED, {"result": result, "fingerprint": fingerprint}
            case Failed(error):
                status, outcome = JobStatus.FAILED, {"error": error}
            case Cancelled():
                status, outcome = JobStatus.CANCELLED, {}
        with self._lock:
            job = self._jobs.get(claim.job.id)
            if job and (job.worker, job.record.attempt, job.record.status) == (claim.worker, claim.attempt, status):
                return True
            job = self._held(claim)
            if job is None:
                return False
            if bill is not None:
                self._charges.settle(job.record.id, bill)
            self._end(job, status, **outcome, **({"progress": progress} if progress else {}))
            return True

    def release(self, claim: Claim) -> None:
        with self._lock:
            if job := self._held(claim):
                job.worker = None
                self._hand_back(job)

    def cancel(self, job_id: str) -> JobRecord | None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            if job.record.status is JobStatus.QUEUED:
                self._end(job, JobStatus.CANCELLED)
            elif job.record.status is JobStatus.RUNNING:
                job.record = job.record.model_copy(update={"cancel_requested": True})
            return job.record

    def delete(self, job_id: str) -> JobRecord | None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            if job.record.status is JobStatus.RUNNING:
                raise Conflict(ErrorCode.JOB_RUNNING, f"{job_id} is running: cancel it, then delete it")
            if job.record.status is JobStatus.QUEUED:
                self._end(job, JobStatus.CANCELLED)
            return self._forget(job_id)

    def _forget(self, job_id: str) -> JobRecord:
        job = self._jobs.pop(job_id)
        self.reservations.free(job_id)
        self.batches.left(job.new, job.record)
        return job.record

    def reap(self) -> Reaped:
        with self._lock:
            now = self.clock()
            if not self._rounds.begin(now):
                return Reaped()
            overdue = self._end_overdue()
            handed_back, lost = self._reap_leases(now)
            forgotten = self._forget_expired(now)
            return Reaped(
                handed_back,
                overdue + lost,
                forgotten,
                self._jobs.waiting_since(now - timedelta(seconds=self._policy.ring_after_s)),
                self._rounds.sweeps(now),
            )

    def _end_overdue(self) -> tuple[str, ...]:
        overdue = [job for job in self._jobs.with_status(JobStatus.QUEUED) if self._past_deadline(job)]
        for job in overdue:
            self._end(job, JobStatus.FAILED, error=DEADLINE_EXCEEDED)
        return tuple(job.record.id for job in overdue)

    def _reap_leases(self, now: datetime) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self._rounds.spares_leases(now):
            return (), ()
        expired = [job for job in self._jobs.with_status(JobStatus.RUNNING) if job.lease_until <= now]
        handed_back = {job.record.id for job in expired if self._lose(job)}
        return tuple(handed_back), tuple(job.record.id for job in expired if job.record.id not in handed_back)

    def _lose(self, job: KeptJob) -> bool:
        chunk = self._executing.get(job.worker or "")
        suspected: str | None = None
        if not chunk:
            suspected = "unexplained"
        elif (job.record.id, job.record.attempt) in chunk:
            suspected = "blamed"
        bounds = {"blamed": self._policy.max_blamed, "unexplained": self._policy.max_unexplained}
        if suspected and not job.record.cancel_requested and getattr(job, suspected) + 1 >= bounds[suspected]:
            self._end(job, JobStatus.FAILED, error=WORKER_LOST)
            return False
        job.suspected = suspected
        return self._hand_back(job)

    def _forget_expired(self, now: datetime) -> tuple[str, ...]:
        expired = [job for job in self._jobs.values() if job.record.expires_at and job.record.expires_at <= now]
        forgotten = [job.record.id for job in expired if not self._kept_by_batch(job)]
        for job_id in forgotten:
            self._forget(job_id)
            del self.events[job_id]
        return tuple(forgotten)

    def _kept_by_batch(self, job: KeptJob) -> bool:
        full = len(self._jobs.of(job.new.owner)) >= self._policy.max_renewed * self._policy.max_kept
        until = self.batches.kept_until(job.new, full=full)
        if until is not None:
            job.record = job.record.model_copy(update={"expires_at": until})
        return until is not None

    def charged(self, owner: str) -> tuple[int, timedelta]:
        return self._charges.charged(owner, self.clock())

    def known(self, job_ids: Collection[str]) -> frozenset[str]:
        with self._lock:
            return (frozenset(job_ids) & (self._jobs.keys() | self.arriving)) | self.batches.known(job_ids)

    def depth(self, pool: str) -> int:
        with self._lock:
            return self._jobs.depth(pool)

    def roomy(self) -> bool:
        return True

    def ping(self) -> None:
        return

    def _past_deadline(self, job: KeptJob) -> bool:
        return job.record.deadline_at is not None and job.record.deadline_at <= self.clock()

    def _held(self, claim: Claim) -> KeptJob | None:
        """The job if the claim holds, its lease extended; a job that was handed back meanwhile runs again."""
        job = self._jobs.get(claim.job.id)
        if job is None or (job.worker, job.record.attempt) != (claim.worker, claim.attempt):
            return None
        if job.record.status.terminal:
            return None
        job.lease_until = self.clock() + timedelta(seconds=self._policy.lease_s)
        if job.record.status is JobStatus.QUEUED:
            self._turns_of(job).remove(job.new.owner, job.number)
            job.suspected = None
            self._change(job, status=JobStatus.RUNNING)
        return job

    def _hand_back(self, job: KeptJob) -> bool:
        if job.record.cancel_requested:
            self._end(job, JobStatus.CANCELLED)
        elif self._past_deadline(job):
            self._end(job, JobStatus.FAILED, error=DEADLINE_EXCEEDED)
        else:
            self._line_up(job, LONG_AGO)
            self._change(job, status=JobStatus.QUEUED)
            return True
        return False

    def _line_up(self, job: KeptJob, since: datetime) -> None:
        self._turns_of(job).add(job.new.owner, job.number, job.new.id)
        job.queued_since = since

    def _end(self, job: KeptJob, status: JobStatus, **outcome: Any) -> None:
        self._turns_of(job).remove(job.new.owner, job.number)
        if job.record.attempt == 0:
            self._charges.settle(job.record.id, 0)
        now = self.clock()
        expires_at = now + timedelta(seconds=self._policy.retention_s)
        self.tokens.pop(job.record.id, None)
        self._change(job, status=status, finished_at=now, expires_at=expires_at, **outcome)
        for hear in self.on_end:
            hear(job.new, job.record)

    def _change(self, job: KeptJob, tokens: tuple[NewTokens, ...] = (), **changes: Any) -> None:
        job.record = job.record.model_copy(update={**changes, "version": job.record.version + 1})
        self._publish(job, tokens)

    def _publish(self, job: KeptJob, tokens: tuple[NewTokens, ...] = ()) -> None:
        events = self.events.setdefault(job.record.id, [])
        events.append(JobEvent(id=str(job.record.version), summary=job.record.summary(), tokens=tokens))
        del events[:-KEPT_EVENTS]

    def _turns_of(self, job: KeptJob) -> Turns:
        return self._turns[job.new.pool, job.new.spec.priority, job.size]
