"""What is told to an endpoint when a job ends, and what is remembered of the telling."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract
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


class DeliveryOutcome(Contract):
    """How one try to deliver a message went. `gave_up`: it was the last one."""

    message_id: Annotated[str, Field(description="As in the header `webhook-id`.")]
    job_id: str
    at: datetime
    attempt: int
    outcome: Literal["delivered", "will_retry", "gave_up"]
    status: Annotated[int | None, Field(description="Of the receiver's answer, if there was one.")]
    reason: FailureReason | None
    next_attempt_at: datetime | None
