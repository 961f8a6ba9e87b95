"""The job record: the truth about a job, and what its life hands around."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from services.contracts.base import Contract
from services.contracts.errors import ErrorCode
from services.contracts.generation import NewTokens
from services.contracts.inputs import Inputs
from services.contracts.job import JobError, JobProgress, JobSpec, JobStatus, JobSummary
from services.jobs.limits import OwnerLimits


class StoredResult(Contract):
    """A result's place: its JSON here when small, else in a blob; its external tensors in one safetensors blob."""

    document: str | None = None
    document_blob: str | None = None
    tensors_blob: str | None = None


class JobRecord(Contract):
    """What the store knows of a job at any time; what it computes on (spec and inputs) travels in the claim alone.

    `started_at` is the start of the latest attempt, `attempt` how often the job was claimed.
    """

    id: str
    owner: str
    pool: str
    kind: str
    model: str
    label: str | None
    metadata: dict[str, str]
    priority: Literal["interactive", "batch"]
    batch: str | None = None
    """The batch that it belongs to."""
    status: JobStatus
    created_at: datetime
    deadline_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    attempt: int = 0
    cancel_requested: bool = False
    progress: JobProgress = JobProgress(done=0, planned=0)
    cached: bool = False
    error: JobError | None = None
    result: StoredResult | None = None
    fingerprint: str | None = None
    """Of what computed the result; null where nothing did."""
    version: int = 0
    """Counts the record's events; the id of the latest one."""

    def summary(self) -> JobSummary:
        return JobSummary(**{name: getattr(self, name) for name in JobSummary.model_fields})


class Size(StrEnum):
    """How long a job holds a slot: small ones wait in lines of their own, which large ones never hold up."""

    SMALL = "small"
    LARGE = "large"


class Ties(Contract):
    """What else hears of a job's end, by id; null is nobody."""

    batch: str | None = None
    """The batch that counts the job among its own."""
    webhook: str | None = None
    """The endpoint that is told."""
    cache_entry: str | None = None
    """Under which name the result may answer the same question again."""


class NewJob(Contract):
    """A job that has been validated, tokenised and admitted, before it is stored."""

    id: str
    owner: str
    pool: str
    spec: JobSpec
    inputs: Inputs
    cost: int
    """An estimate of its engine work, in token-layers."""
    limits: OwnerLimits = OwnerLimits()
    ties: Ties = Ties()

    def queued(self, created_at: datetime) -> JobRecord:
        """The job's first record."""
        spec = self.spec
        return JobRecord(
            id=self.id,
            owner=self.owner,
            pool=self.pool,
            kind=spec.kind,
            model=spec.model,
            label=spec.label,
            metadata=spec.metadata,
            priority=spec.priority,
            batch=self.ties.batch,
            status=JobStatus.QUEUED,
            created_at=created_at,
            deadline_at=None if spec.deadline_s is None else created_at + timedelta(seconds=spec.deadline_s),
            version=1,
        )


@dataclass(frozen=True)
class Idempotency:
    """A client's `Idempotency-Key` and the digest of the normalised request that came with it."""

    key: str
    request_sha256: str


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one attempt of a job: `attempt` is the fencing token.

    `alone`: a worker died over this job before, so its rows share no chunk with another job's.
    """

    job: JobRecord
    spec: JobSpec
    inputs: Inputs
    worker: str
    attempt: int
    size: Size
    alone: bool = False


class Stop(StrEnum):
    """Why a running job is asked to stop."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True)
class Beat:
    """What a heartbeat learns of one claim.

    Not `held`: the job is another's or ended, drop the work without a word. `stop`: end it with `Cancelled`, or with
    `Failed(DEADLINE_EXCEEDED)`, the error below.
    """

    held: bool
    stop: Stop | None = None


@dataclass(frozen=True)
class Succeeded:
    """`fingerprint` is that of what computed the result: see `services.jobs.cache`."""

    result: StoredResult
    fingerprint: str | None = None


@dataclass(frozen=True)
class Failed:
    error: JobError


@dataclass(frozen=True)
class Cancelled:
    pass


Ending = Succeeded | Failed | Cancelled

DEADLINE_EXCEEDED = JobError(
    code=ErrorCode.DEADLINE_EXCEEDED,
    message="the job's deadline passed before it was done: give it longer `deadline_s`",
)
WORKER_LOST = JobError(
    code=ErrorCode.WORKER_LOST, message="the worker died again and again while it ran this job: make the job smaller"
)

RECORD_DAMAGED = JobError(code=ErrorCode.INTERNAL, message="the job's record was damaged: send the job again")


@dataclass(frozen=True)
class JobEvent:
    """One entry of a job's event stream: the job as it was then. Ids are the job's own, decimal, and grow.

    `tokens` are those that a job which generates has written since the watcher's last event; all so far in a snapshot.
    """

    id: str
    summary: JobSummary
    tokens: tuple[NewTokens, ...] = ()
