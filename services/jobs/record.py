"""The job record: the truth about a job, and what its life hands around."""

from dataclasses import dataclass
from datetime import datetime

from services.contracts.base import Contract
from services.contracts.inputs import Inputs
from services.contracts.job import JobError, JobProgress, JobSpec, JobStatus, JobSummary


class NewJob(Contract):
    """A job that has been validated, tokenised and admitted, before it is stored."""

    id: str
    owner: str
    pool: str
    spec: JobSpec
    inputs: Inputs


class JobRecord(Contract):
    """Everything the store knows of a job, its result's place included."""

    id: str
    owner: str
    pool: str
    spec: JobSpec
    inputs: Inputs
    status: JobStatus
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    attempt: int = 0
    cancel_requested: bool = False
    progress: JobProgress = JobProgress(done=0, planned=0)
    error: JobError | None = None
    result: "StoredResult | None" = None

    def summary(self) -> JobSummary:
        return JobSummary(
            id=self.id,
            kind=self.spec.kind,
            model=self.spec.model,
            status=self.status,
            label=self.spec.label,
            metadata=self.spec.metadata,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            expires_at=self.expires_at,
            attempt=self.attempt,
            progress=self.progress,
            cached=False,
            error=self.error,
        )


class StoredTensor(Contract):
    """Where an external tensor's bytes lie in the tensors blob."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    sha256: str


class StoredResult(Contract):
    """A result's place: its JSON inside the record when small, else a blob; external tensors in one blob."""

    document: str | None = None
    document_blob: str | None = None
    tensors_blob: str | None = None
    tensors: tuple[StoredTensor, ...] = ()


JobRecord.model_rebuild()


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one attempt of a job: `attempt` is the fencing token."""

    job: JobRecord
    worker: str
    attempt: int
    alone: bool = False


@dataclass(frozen=True)
class Beat:
    """What a heartbeat learns of one claim."""

    held: bool
    cancel_requested: bool


@dataclass(frozen=True)
class Succeeded:
    result: StoredResult


@dataclass(frozen=True)
class Failed:
    error: JobError


@dataclass(frozen=True)
class Cancelled:
    pass


Ending = Succeeded | Failed | Cancelled


@dataclass(frozen=True)
class JobEvent:
    """One entry of a job's event stream; ids are the job's own and grow."""

    id: str
    summary: JobSummary
