"""What the life of a job needs from outside: a store of records, a queue of doorbells, a place for large results.

The store is synchronous (a call is one short script on the server); the event reader is asynchronous, since thousands
of clients wait on it. Every implementation passes the same tests (`tests/services/jobs/`).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.contracts.job import JobProgress, JobStatus, JobSummary
from services.jobs.record import Beat, Claim, Ending, JobEvent, JobRecord, NewJob


@dataclass(frozen=True)
class JobFilter:
    status: JobStatus | None = None
    kind: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Page:
    """Summaries, newest first; `cursor` is opaque and null on the last page."""

    jobs: tuple[JobSummary, ...]
    cursor: str | None


@dataclass(frozen=True)
class Reaped:
    """What one round of the reaper did."""

    handed_back: tuple[str, ...]
    failed: tuple[str, ...]
    rung: int


class JobStore(Protocol):
    """The job records and every transition of their state, each atomic on the server's own clock."""

    def create(self, job: NewJob) -> JobRecord:
        """Store a queued job and put it in line; raises Unavailable(QUEUE_FULL) over the queue's bound."""

    def get(self, job_id: str) -> JobRecord | None:
        """The record, or None if there is none."""

    def list(self, owner: str, where: JobFilter, cursor: str | None, limit: int) -> Page:
        """The owner's jobs; raises LensdError(INVALID_REQUEST) on a cursor that is not ours."""

    def claim(self, pool: str, worker: str, lease_s: float) -> Claim | None:
        """The next job of the pool (interactive first, then round robin over owners), or None. Skips expired deadlines, failing them."""

    def heartbeat(self, claims: Sequence[Claim], lease_s: float) -> Mapping[str, Beat]:
        """Extend the leases of `claims`; per job id whether the claim still holds and whether to stop."""

    def progress(self, claim: Claim, progress: JobProgress) -> None:
        """Record progress and publish an event; ignored when the claim no longer holds."""

    def finish(self, claim: Claim, ending: Ending) -> bool:
        """End the job; False (and no change) when the claim no longer holds."""

    def release(self, claim: Claim) -> None:
        """Hand the job back to the front of the line at no cost in attempts (drain)."""

    def cancel(self, job_id: str) -> JobRecord | None:
        """Cancel a queued job at once, ask a running one to stop; terminal jobs are left as they are."""

    def delete(self, job_id: str) -> JobRecord | None:
        """Forget a job that is not running; raises Conflict(JOB_RUNNING). Returns what was forgotten."""

    def reap(self) -> Reaped:
        """Hand expired leases back (or fail them after the last attempt) and say how many queued jobs nobody claimed."""

    def depth(self, pool: str) -> int:
        """Queued jobs of the pool."""

    def ping(self) -> None:
        """Raises Unavailable(STORE_UNAVAILABLE) when the store does not answer."""


class JobEvents(Protocol):
    """One reader per gateway process; any number of watchers."""

    def watch(self, job_id: str, after: str | None = None) -> AsyncIterator[JobEvent]:
        """Events of the job after id `after` (or a first snapshot), ending with the terminal one. Reconnects by itself."""


class Doorbell(Protocol):
    """Wakes a slot of a worker; says nothing about which job."""

    def ring(self, pool: str) -> None:
        """At most a few hundred milliseconds, and never fatal: the reaper rings again for jobs nobody claimed."""


class Blobs(Protocol):
    """Bytes under keys `{job}/{attempt}/{uuid}`, written whole or not at all."""

    def put(self, key: str, data: bytes) -> None: ...

    def get(self, key: str) -> bytes | None:
        """The bytes, or None when they are gone."""

    def read(self, key: str, offset: int, nbytes: int) -> bytes | None:
        """A slice of the bytes, or None when they are gone."""

    def delete(self, job_id: str) -> None:
        """Every blob of the job."""

    def jobs(self) -> Sequence[str]:
        """Ids of the jobs that own blobs, for the sweep of orphans."""


@dataclass(frozen=True)
class WorkerState:
    """What a worker announces with its heartbeat."""

    worker: str
    pool: str
    models: Mapping[str, str]
    """Model id → "loading" or "loaded"."""


class WorkerRegistry(Protocol):
    """Who is alive: announced by workers, read by /readyz and /v1/models."""

    def announce(self, state: WorkerState, ttl_s: float) -> None: ...

    def retire(self, worker: str) -> None: ...

    def alive(self) -> Sequence[WorkerState]: ...
