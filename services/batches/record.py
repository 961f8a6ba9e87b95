"""What is kept of a batch and of its lines."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.contracts.base import Contract
from services.contracts.batch import LineFault, OnInvalid
from services.contracts.errors import ErrorCode
from services.contracts.job import JobError
from services.tenants.keys import ApiKey


class Phase(StrEnum):
    """Where a batch is in its life."""

    UPLOADING = "uploading"
    """Its upload is not stored yet: nobody sees it."""
    VALIDATING = "validating"
    RUNNING = "running"
    CANCELLING = "cancelling"
    ENDED = "ended"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        return self in (Phase.ENDED, Phase.FAILED)


class StoredLine(Contract):
    """A line that was validated: where it stands in the upload, what the client calls it, and what is wrong with it."""

    number: int
    """From 1, as editors count; blank lines count."""
    offset: int
    nbytes: int
    custom_id: str | None = None
    fault: LineFault | None = None


class NewBatch(Contract):
    """An upload that is to become a batch."""

    id: str
    key: ApiKey
    """The key that made it, as it was then and without its secret: its models and limits apply to every line."""
    on_invalid: OnInvalid
    label: str | None
    lines: int
    """Those that are not blank; everything that counts or numbers lines from 0 counts these."""
    webhook: str | None = None
    """The endpoint that is told of the end."""


class Batch(NewBatch):
    """The record of a batch; `checked` and `fed` are how many lines were validated, and turned into jobs."""

    phase: Phase
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    blob: str | None = None
    offset: int = 0
    """Where in the upload the lines begin that are not validated yet."""
    number: int = 0
    """Lines before it, blank ones too."""
    checked: int = 0
    invalid: int = 0
    cost: int = 0
    """Engine work of the lines validated so far, by estimate, in token-layers."""
    fed: int = 0
    living: int = 0
    """Its jobs that have not ended."""
    running: int = 0
    """Those of them that run."""
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    error: JobError | None = None
    wrong: tuple[StoredLine, ...] = ()
    """The first lines that are wrong."""

    @property
    def owner(self) -> str:
        return self.key.owner


BATCH_DAMAGED = JobError(
    code=ErrorCode.INTERNAL,
    message="the batch's record was damaged: jobs that it has made go on by themselves; send the other lines again",
)


@dataclass(frozen=True)
class Turn:
    """A keeper's right to one piece of work: `fence` is its token, and `batch` the batch as it was `at` then."""

    batch: Batch
    fence: int
    at: datetime


@dataclass(frozen=True)
class Checked:
    """What validating the next piece of an upload came to."""

    lines: tuple[StoredLine, ...]
    offset: int
    number: int
    cost: int


@dataclass(frozen=True)
class BatchPage:
    """Batches, newest first; `cursor` is opaque and null on the last page."""

    batches: tuple[Batch, ...]
    cursor: str | None


class TurnLost(Exception):
    """Another keeper has the batch, or it has gone on to another phase: drop the work without a word."""
