"""The fake of the batch store, for tests: beside a `MemoryJobStore`, whose jobs it counts."""

import itertools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from services.batches.record import Batch, BatchPage, Checked, NewBatch, Phase, StoredLine, Turn, TurnLost
from services.batches.store import (
    ABANDONED_S,
    LEASE_S,
    batch_over_quota,
    reused_key,
    too_many_batches,
    too_many_kept_batches,
)
from services.contracts.batch import MAX_SHOWN_ERRORS
from services.contracts.job import JobError, JobStatus
from services.jobs.limits import batch_closed
from services.jobs.memory.cursor import read_cursor, write_cursor
from services.jobs.memory.store import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import Idempotency, JobRecord, NewJob


@dataclass
class _Kept:
    """A batch with what its record does not show."""

    batch: Batch
    due: datetime
    idempotency: Idempotency | None
    fence: int = 0
    taken: int = 0
    """Which turn of all its latest was."""
    lines: list[StoredLine] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    living: set[str] = field(default_factory=set)
    deleted: dict[str, JobStatus] = field(default_factory=dict)


class MemoryBatchStore:
    """Implements `services.batches.store.BatchStore`."""

    def __init__(
        self, jobs: MemoryJobStore, policy: JobPolicy, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._jobs = jobs
        self._max_kept = policy.max_kept_batches
        self._retention = timedelta(seconds=policy.retention_s)
        self._clock = clock
        self._lock = threading.RLock()
        self._kept: dict[str, _Kept] = {}
        self._turns = itertools.count(1)
        jobs.batches = MemoryBatchRoll(self._kept, clock, policy)
        jobs.on_end.append(self._count)
        self.on_end: list[Callable[[Batch], None]] = []
        """Called with each batch as it was when it ended."""

    def create(self, batch: NewBatch, open_at_most: int, idempotency: Idempotency | None = None) -> Batch:
        with self._lock:
            if batch.id in self._kept:
                return self._state(batch.id)
            own = [kept for kept in self._kept.values() if kept.batch.owner == batch.key.owner]
            for kept in own:
                if idempotency and kept.idempotency and kept.idempotency.key == idempotency.key:
                    if kept.idempotency != idempotency:
                        raise reused_key()
                    return self._state(kept.batch.id)
            unfinished = sum(not kept.batch.phase.terminal for kept in own)
            if unfinished >= open_at_most:
                raise too_many_batches(unfinished)
            if len(own) >= self._max_kept:
                raise too_many_kept_batches(len(own))
            self._jobs.check_kept(batch.key.owner)
            now = self._clock()
            noted = Batch(**dict(batch), phase=Phase.UPLOADING, created_at=now)
            self._kept[batch.id] = _Kept(noted, now + timedelta(seconds=ABANDONED_S), idempotency)
            return noted

    def open(self, batch_id: str, blob: str) -> Batch | None:
        with self._lock:
            kept = self._kept.get(batch_id)
            if kept is not None and kept.batch.phase is Phase.UPLOADING:
                self._change(kept, phase=Phase.VALIDATING, blob=blob)
                kept.due = self._clock()
            return self.get(batch_id)

    def abandon(self, batch_id: str) -> None:
        with self._lock:
            if batch_id in self._kept and self._kept[batch_id].batch.phase is Phase.UPLOADING:
                del self._kept[batch_id]

    def get(self, batch_id: str) -> Batch | None:
        with self._lock:
            return self._state(batch_id) if batch_id in self._kept else None

    def list(self, owner: str, cursor: str | None, limit: int) -> BatchPage:
        with self._lock:
            own = [
                batch_id
                for batch_id, kept in reversed(self._kept.items())
                if kept.batch.owner == owner and kept.batch.phase is not Phase.UPLOADING
            ]
            first = 0 if cursor is None else read_cursor(cursor)
            page = own[first : first + limit]
            more = first + limit < len(own)
            return BatchPage(
                batches=tuple(map(self._state, page)),
                cursor=write_cursor(first + limit) if more else None,
            )

    def lines(self, batch_id: str, first: int, count: int) -> Sequence[StoredLine]:
        with self._lock:
            kept = self._kept.get(batch_id)
            return () if kept is None else tuple(kept.lines[first : first + count])

    def deleted(self, batch_id: str, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        with self._lock:
            kept = self._kept.get(batch_id)
            return {} if kept is None else {id_: kept.deleted[id_] for id_ in job_ids if id_ in kept.deleted}

    def cancel(self, batch_id: str) -> Batch | None:
        with self._lock:
            if batch_id in self._kept:
                self._stop(self._kept[batch_id])
            return self.get(batch_id)

    def forget_jobs(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            record = self._jobs.get(job_id)
            if record is not None and record.status.terminal:
                self._jobs.delete(job_id)

    def forget(self, batch_id: str) -> None:
        with self._lock:
            self._kept.pop(batch_id, None)

    def take(self) -> Turn | None:
        with self._lock:
            now = self._clock()
            due = [kept for kept in self._kept.values() if kept.due <= now]
            if not due:
                return None
            kept = min(due, key=lambda kept: (kept.due, kept.taken))
            kept.taken = next(self._turns)
            kept.due = now + timedelta(seconds=LEASE_S)
            kept.fence += 1
            return Turn(self._state(kept.batch.id), kept.fence, now)

    def put_back(self, turn: Turn, after_s: float) -> None:
        with self._lock:
            kept = self._kept.get(turn.batch.id)
            if kept is not None and kept.fence == turn.fence and kept.due > self._clock():
                kept.due = self._clock() + timedelta(seconds=after_s)

    def name(self, turn: Turn, names: Mapping[str, int]) -> Mapping[str, int]:
        with self._lock:
            kept = self._held(turn, Phase.VALIDATING)
            owners = {name: kept.names.setdefault(name, number) for name, number in names.items()}
            return {name: owner for name, owner in owners.items() if owner != names[name]}

    def check(self, turn: Turn, checked: Checked) -> None:
        with self._lock:
            kept = self._held(turn, Phase.VALIDATING)
            if kept.batch.checked != turn.batch.checked:
                return
            kept.lines += checked.lines
            self._change(
                kept,
                offset=checked.offset,
                number=checked.number,
                checked=len(kept.lines),
                cost=kept.batch.cost + checked.cost,
                invalid=sum(line.fault is not None for line in kept.lines),
            )

    def start(self, turn: Turn, daily_token_layers: int | None) -> None:
        with self._lock:
            kept = self._held(turn, Phase.VALIDATING, Phase.RUNNING)
            if kept.batch.phase is Phase.RUNNING:
                return
            charged, resets_in = self._jobs.charged(kept.batch.owner)
            if daily_token_layers is not None and charged + kept.batch.cost > daily_token_layers:
                raise batch_over_quota(kept.batch.cost, charged, daily_token_layers, resets_in)
            self._change(kept, phase=Phase.RUNNING, started_at=self._clock())

    def fail(self, turn: Turn, error: JobError) -> None:
        with self._lock:
            kept = self._held(turn, Phase.VALIDATING, Phase.FAILED)
            if kept.batch.phase is not Phase.FAILED:
                self._end(kept, Phase.FAILED, error=error, cancelled=kept.batch.lines - kept.batch.invalid)

    def feed(self, turn: Turn, fed: int, wrong: Mapping[int, StoredLine]) -> None:
        with self._lock:
            kept = self._held(turn, Phase.RUNNING, Phase.CANCELLING)
            if kept.batch.fed >= fed:
                return
            for index, line in wrong.items():
                kept.lines[index] = line
            self._change(kept, fed=fed, invalid=sum(line.fault is not None for line in kept.lines))
            self._end_if_done(kept)

    def stop(self, turn: Turn, error: JobError) -> None:
        with self._lock:
            kept = self._held(turn, Phase.RUNNING)
            self._change(kept, error=error)
            self._stop(kept)

    def cancel_jobs(self, turn: Turn, at_most: int) -> None:
        kept = self._held(turn, Phase.CANCELLING)
        queued = 0
        for job_id in sorted(kept.living):
            record = self._jobs.get(job_id)
            queued += record is not None and record.status is JobStatus.QUEUED
            if queued <= at_most:
                self._jobs.cancel(job_id)

    def _stop(self, kept: _Kept) -> None:
        if kept.batch.phase in (Phase.VALIDATING, Phase.RUNNING):
            self._change(kept, phase=Phase.CANCELLING)
            kept.due = self._clock()
            self._end_if_done(kept)

    def _held(self, turn: Turn, *phases: Phase) -> _Kept:
        kept = self._kept.get(turn.batch.id)
        if kept is None or kept.fence != turn.fence or kept.batch.phase not in phases:
            raise TurnLost
        return kept

    def _state(self, batch_id: str) -> Batch:
        kept = self._kept[batch_id]
        records = [self._jobs.get(job_id) for job_id in kept.living]
        wrong = [line for line in kept.lines if line.fault is not None]
        return kept.batch.model_copy(
            update={
                "living": len(kept.living),
                "running": sum(record is not None and record.status is JobStatus.RUNNING for record in records),
                "wrong": tuple(wrong[:MAX_SHOWN_ERRORS]),
            }
        )

    def _count(self, job: NewJob, record: JobRecord) -> None:
        """What `tell_batch` in the scripts does."""
        with self._lock:
            kept = self._kept.get(job.ties.batch or "")
            if kept is None or kept.batch.phase not in (Phase.RUNNING, Phase.CANCELLING):
                return
            kept.living.discard(job.id)
            self._change(kept, **{record.status: getattr(kept.batch, record.status) + 1})
            self._end_if_done(kept)

    def _end_if_done(self, kept: _Kept) -> None:
        batch = kept.batch
        ended = batch.invalid + batch.succeeded + batch.failed + batch.cancelled
        over = batch.phase is Phase.RUNNING and ended >= batch.lines
        if over or (batch.phase is Phase.CANCELLING and not kept.living):
            self._end(kept, Phase.ENDED, cancelled=batch.lines - batch.invalid - batch.succeeded - batch.failed)

    def _end(self, kept: _Kept, phase: Phase, **changes: object) -> None:
        now = self._clock()
        self._change(kept, phase=phase, finished_at=now, expires_at=now + self._retention, **changes)
        kept.due = now
        for told in self.on_end:
            told(kept.batch)

    @staticmethod
    def _change(kept: _Kept, **changes: object) -> None:
        kept.batch = kept.batch.model_copy(update=changes)


class MemoryBatchRoll:
    """The batches as the jobs' store sees them."""

    def __init__(self, kept: Mapping[str, _Kept], clock: Callable[[], datetime], policy: JobPolicy) -> None:
        self._kept = kept
        self._clock = clock
        self._policy = policy

    def deleted(self, job: NewJob) -> bool:
        kept = self._kept.get(job.ties.batch or "")
        return kept is not None and job.id in kept.deleted

    def takes(self, job: NewJob) -> bool:
        kept = self._kept.get(job.ties.batch or "")
        return job.ties.batch is None or (kept is not None and kept.batch.phase is Phase.RUNNING)

    def join(self, job: NewJob) -> None:
        if not self.takes(job):
            raise batch_closed(job.ties.batch or "")
        if job.ties.batch is not None:
            self._kept[job.ties.batch].living.add(job.id)

    def left(self, job: NewJob, record: JobRecord) -> None:
        if kept := self._kept.get(job.ties.batch or ""):
            kept.deleted[job.id] = record.status

    def kept_until(self, job: NewJob, *, full: bool) -> datetime | None:
        kept = self._kept.get(job.ties.batch or "")
        if kept is None or (full and kept.batch.expires_at is None):
            return None
        now = self._clock()
        until = kept.batch.expires_at or now + timedelta(seconds=self._policy.retention_s)
        return until if until > now else now + timedelta(seconds=self._policy.lease_s)

    def known(self, ids: Collection[str]) -> frozenset[str]:
        return frozenset(ids) & self._kept.keys()
