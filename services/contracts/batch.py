"""A batch as it travels: many jobs in one upload, a line each, and what became of every line."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Request
from services.contracts.errors import ErrorCode
from services.contracts.job import JobError, JobResult, JobSpec

MAX_LINES = 10_000
MAX_SHOWN_ERRORS = 20

CustomId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="The client's own name of the line, of which a batch has no two alike.",
    ),
]
OnInvalid = Literal["refuse", "report"]


class BatchLine(Request):
    """One line of a batch: a job and the client's name for it. Its `priority` counts as `batch`, whatever it says."""

    custom_id: CustomId
    job: JobSpec


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    RUNNING = "running"
    CANCELLING = "cancelling"
    ENDED = "ended"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        return self in (BatchStatus.ENDED, BatchStatus.FAILED)


class LineFault(Contract):
    """What is wrong with a line: where in it (an RFC 6901 pointer), what, and what to do instead."""

    code: ErrorCode
    message: str
    pointer: str = ""


class WrongLine(LineFault):
    line: Annotated[int, Field(description="Its number in the upload, from 1; blank lines count.")]
    custom_id: Annotated[str | None, Field(description="Null when not even that could be read.")]


class BatchCounts(Contract):
    """Lines by what became of them. Once the batch has ended, the last four make up the total."""

    total: int
    validated: int
    waiting: Annotated[int, Field(description="Not yet in the queue, invalid ones left out.")]
    queued: int
    running: int
    invalid: int
    succeeded: int
    failed: int
    cancelled: int


class BatchView(Contract):
    """A batch as it is now."""

    id: Annotated[str, Field(pattern=r"^batch_[a-z2-7]{26}$")]
    status: BatchStatus
    label: str | None
    on_invalid: OnInvalid
    webhook: Annotated[str | None, Field(description="The endpoint that is told when the batch has ended.")]
    created_at: datetime
    started_at: Annotated[datetime | None, Field(description="When all lines were validated and the first could run.")]
    finished_at: datetime | None
    expires_at: Annotated[datetime | None, Field(description="When the batch and all its jobs are forgotten.")]
    counts: BatchCounts
    token_layers: Annotated[int, Field(description="Engine work of the lines validated so far, by estimate.")]
    error: Annotated[JobError | None, Field(description="Why the batch failed, or was stopped.")]
    errors: Annotated[
        tuple[WrongLine, ...],
        Field(description=f"The first {MAX_SHOWN_ERRORS} wrong lines; the results of the batch tell of all."),
    ]


class BatchList(Contract):
    """A page of batches, newest first."""

    batches: tuple[BatchView, ...]
    cursor: Annotated[str | None, Field(description="Ask for the next page with it; null on the last one.")]


class LineStatus(StrEnum):
    """What became of a line."""

    INVALID = "invalid"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class LineResult(Contract):
    """What became of one line of a batch: a line of its results."""

    custom_id: Annotated[str | None, Field(description="Null when it could not be read, or was not before the cancel.")]
    status: LineStatus
    job_id: Annotated[str | None, Field(description="Null when the line never became a job.")]
    result: Annotated[JobResult | None, Field(description="The result of a line that has succeeded.")]
    error: Annotated[LineFault | None, Field(description="Why there is no result.")]
