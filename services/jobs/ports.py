"""What the life of a job needs from outside: a store of records, a queue of doorbells, a place for large results.

The store is synchronous (a call is one short script on the server); the event reader is asynchronous, since thousands
of clients wait on it. Every implementation passes the same tests (`tests/services/jobs/`), and every one raises
Unavailable(STORE_UNAVAILABLE) when what stands behind it does not answer. Fakes: `services/jobs/memory/`.

                 claim                finish
       queued ──────────► running ──────────────► succeeded, failed, cancelled
        │  ▲                 │
        │  └─────────────────┘ release, or its lease expired
        └► cancelled (cancel), failed (deadline, too many lost workers)
"""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.contracts.generation import NewTokens
from services.contracts.job import JobProgress, JobStatus, JobSummary
from services.jobs.record import Beat, Claim, Ending, Idempotency, JobEvent, JobRecord, NewJob, Size

NOBODY: Mapping[Size, Collection[str]] = {}


@dataclass(frozen=True)
class JobFilter:
    status: JobStatus | None = None
    kind: str | None = None
    label: str | None = None
    batch: str | None = None

    def admits(self, job: JobRecord) -> bool:
        return (
            (self.status is None or self.status == job.status)
            and (self.kind is None or self.kind == job.kind)
            and (self.label is None or self.label == job.label)
            and (self.batch is None or self.batch == job.batch)
        )


@dataclass(frozen=True)
class Page:
    """Summaries, newest first; `cursor` is opaque and null on the last page.

    A page looks at a bounded number of jobs: under a filter it may be short, or empty, and still have a cursor.
    """

    jobs: tuple[JobSummary, ...]
    cursor: str | None


@dataclass(frozen=True)
class Reaped:
    """What one round of the reaper did, and what is left to do for the process whose turn it was."""

    handed_back: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    """Jobs that got no further: failed, or cancelled where that had been asked for."""
    forgotten: tuple[str, ...] = ()
    """Jobs past their retention: their blobs are to be deleted."""
    unclaimed: Mapping[str, int] = field(default_factory=dict)
    """Pool → queued jobs that nobody claimed in time: doorbells are to be rung."""
    sweep: bool = False
    """Whether blobs without a job are to be looked for now."""


class JobStore(Protocol):
    """The job records and every transition of their state, each atomic on the server's own clock.

    A claim *holds* until another worker claims the job, or the job ends or is released: an expired lease, even a job
    already handed back, is revived by its own worker as long as nobody else has claimed it.
    """

    def create(self, job: NewJob, idempotency: Idempotency | None = None) -> JobRecord:
        """Store a queued job and put it in line; the caller rings the doorbell.

        With an idempotency key that the owner has used before: the earlier job (its id is not `job.id`) if the request
        was the same, else raises Conflict(IDEMPOTENCY_CONFLICT). Raises Limited(TOO_MANY_JOBS | QUOTA_EXCEEDED) over
        `job.limits`, Limited(TOO_MANY_JOBS) over what `JobPolicy` lets an owner keep, and Unavailable(QUEUE_FULL) over
        the bound of the pool's queue, which is lower for the priority `batch`, or of the server's memory,
        Conflict(BATCH_CLOSED) for a job of a batch that does not run. Repeating a call is harmless. The job's cost is
        charged to its owner's day.
        """

    def get(self, job_id: str) -> JobRecord | None:
        """The record, or None if there is none."""

    def get_many(self, job_ids: Sequence[str]) -> Sequence[JobRecord | None]:
        """The same for some hundred jobs in one round trip."""

    def queued_ahead(self, job_id: str) -> int | None:
        """About how many jobs the pool starts before this one; None when it is not queued.

        What `claim` would give out first, as it stands: own jobs before it, others' in turn with those, and for a batch
        job every interactive one. An estimate: jobs still to come, limits of owners, and same-priority jobs of the
        other size, which other slots may take, are left out. Costs the same however many jobs wait.
        """

    def list(self, owner: str, where: JobFilter, cursor: str | None, limit: int) -> Page:
        """The owner's jobs; raises Refused(INVALID_REQUEST) on a cursor that is not ours."""

    def claim(
        self, pool: str, worker: str, sizes: Sequence[Size], without: Mapping[Size, Collection[str]] = NOBODY
    ) -> Claim | None:
        """The pool's next job of one of `sizes`, or None: interactive before batch, then as `sizes` are ordered, then
        round robin over owners, `without` those named for a size, and without those that run as many jobs as they may.

        Fails jobs past their deadline on the way. `worker` names one process for its lifetime and never another.
        """

    def executing(self, worker: str, claims: Sequence[Claim]) -> None:
        """Say which claims the worker would die of: those that its next chunk belongs to, before it runs, and those
        that have long worked by themselves; none when there are none.

        This is what blame rests on: if the worker dies, these jobs are blamed. To be called whenever the set changes.
        """

    def heartbeat(self, claims: Sequence[Claim]) -> Mapping[str, Beat]:
        """Extend the leases of `claims`; per job id whether the claim still holds and whether to stop."""

    def progress(self, claim: Claim, progress: JobProgress, tokens: Sequence[NewTokens] = ()) -> None:
        """Record and publish progress, a few times a second at most; ignored when the claim no longer holds.

        `tokens` are those written since the last call, for who watches the job. They are kept until the attempt ends:
        the result has them all.
        """

    def finish(
        self, claim: Claim, ending: Ending, progress: JobProgress | None = None, bill: int | None = None
    ) -> bool:
        """End the job; False (and no change) when the claim no longer holds. Repeating a call is harmless.

        `progress` is the last word on it, if there is one that was not recorded yet. `bill` is what it cost in
        token-layers, which replaces the estimate in the charge to its owner's day.
        """

    def release(self, claim: Claim) -> None:
        """Hand the job back to the front of its owner's line at no cost (drain); the reaper rings for it."""

    def cancel(self, job_id: str) -> JobRecord | None:
        """Cancel a queued job at once, ask a running one to stop; terminal jobs are left as they are."""

    def delete(self, job_id: str) -> JobRecord | None:
        """Forget a job and return it; the caller deletes its blobs. Raises Conflict(JOB_RUNNING) while it runs."""

    def reap(self) -> Reaped:
        """One round for all processes together: empty when the last one was less than `reap_every_s` ago.

        Hands expired leases back (or fails the job: blamed too often, past its deadline; or cancels it, if that was
        asked for), fails queued jobs past their deadline, forgets jobs past their retention whose batch, if they have
        one, is forgotten, or has not ended while its owner keeps nearly all that it may. After an outage leases get one
        more term first.
        """

    def known(self, job_ids: Collection[str]) -> frozenset[str]:
        """Those of `job_ids` that have a record, or will have one in a moment; ids of batches count too, for they own
        blobs as well.
        """

    def depth(self, pool: str) -> int:
        """Queued jobs of the pool."""

    def roomy(self) -> bool:
        """Whether records may hold results of a middling size: less than `roomy_memory` of a known bound is used."""

    def ping(self) -> None:
        """Raises Unavailable(STORE_UNAVAILABLE) when the store does not answer."""


class JobEvents(Protocol):
    """One reader per gateway process; any number of watchers."""

    def watch(self, job_id: str, after: str | None = None) -> AsyncGenerator[JobEvent, None]:
        """The job's events, ending with the terminal one; close the generator to leave earlier.

        Starts with a snapshot, of the texts so far too; with `after`, the id of the last event seen, with those after
        it that are still kept (none, and ends at once, after the terminal one). Outages of the store are ridden out in
        silence once it has begun; it ends without a terminal event if the job is lost in one. Raises
        NotFound(JOB_NOT_FOUND).
        """


class Doorbell(Protocol):
    """Wakes a slot of a worker; says nothing about which job."""

    def ring(self, pool: str) -> None:
        """At most a few hundred milliseconds, and never fatal: the reaper rings again for jobs nobody claimed."""

    def waiting(self, pool: str) -> int | None:
        """Rings that no worker has heard yet; None when that cannot be known now."""


class Doorstep(Protocol):
    """Where an idle worker listens for rings, so that the first job after a pause need not wake it."""

    def listen(self, pool: str, worker: str, seconds: float) -> bool:
        """Whether it rang within `seconds`. Call it again and again, then `leave`; raises Unavailable."""

    def leave(self, pool: str, worker: str) -> bool:
        """Listen no more; whether it had rung unheard, so that another must be rung for. Raises Unavailable."""


class Blobs(Protocol):
    """Bytes under keys of `new_blob_key`, written whole or not at all."""

    def put(self, key: str, data: bytes) -> None:
        """Raises Unavailable(STORE_UNAVAILABLE) when there is no room."""

    def get(self, key: str) -> bytes | None:
        """The bytes, or None when they are gone."""

    def read(self, key: str, offset: int, nbytes: int) -> bytes | None:
        """A slice of the bytes (shorter past their end), or None when they are gone."""

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
    runner: str | None = None
    """A digest of the code, the libraries and the device that it computes with."""


class WorkerRegistry(Protocol):
    """Who is alive: announced by workers, read by /readyz and /v1/models."""

    def announce(self, state: WorkerState, ttl_s: float) -> None: ...

    def retire(self, worker: str) -> None: ...

    def alive(self) -> Sequence[WorkerState]: ...
