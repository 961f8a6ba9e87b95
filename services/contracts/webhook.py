"""What is told to an endpoint when a job or a batch ends, and what is remembered of the telling."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract
from services.contracts.batch import BatchCounts, BatchStatus
from services.contracts.job import JobSummary

EventType = Literal["job.succeeded", "job.failed", "job.cancelled"]

FailureReason = Literal[
    "status",
    "host_not_found",
    "address_not_allowed",
    "url_not_allowed",
    "connection_failed",
    "tls_failed",
    "timed_out",
    "not_http",
]
"""Why a try failed; `status` is an answer other than 2xx, a redirect among them."""


class JobEnded(Contract):
    """The body of a message: that a job has ended, and how. What it asked and its result are fetched with a key."""

    type: EventType
    timestamp: Annotated[datetime, Field(description="When the job ended.")]
    data: JobSummary


class BatchSummary(Contract):
    """What a message says of a batch that has ended; `GET /v1/batches/{id}` has the rest."""

    id: str
    label: str | None
    status: BatchStatus
    finished_at: datetime
    counts: BatchCounts


class BatchEnded(Contract):
    """The body of a message: that a batch has ended, or failed. Its results are fetched with a key."""

    type: Literal["batch.ended", "batch.failed"]
    timestamp: Annotated[datetime, Field(description="When the batch ended.")]
    data: BatchSummary


class DeliveryOutcome(Contract):
    """How one try to deliver a message went. `gave_up`: it was the last one."""

    message_id: Annotated[str, Field(description="As in the header `webhook-id`.")]
    job_id: Annotated[str | None, Field(description="The job that it is about; null when it is about a batch.")]
    batch_id: Annotated[str | None, Field(description="The batch that it is about.")] = None
    at: datetime
    attempt: int
    outcome: Literal["delivered", "will_retry", "gave_up"]
    status: Annotated[int | None, Field(description="Of the receiver's answer, if there was one.")]
    reason: FailureReason | None
    next_attempt_at: datetime | None
