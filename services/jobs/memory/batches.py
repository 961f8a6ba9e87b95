"""What the fake of the job store asks of the batches that its jobs are tied to."""

from collections.abc import Collection
from datetime import datetime
from typing import Protocol

from services.jobs.record import JobRecord, NewJob


class BatchRoll(Protocol):
    def deleted(self, job: NewJob) -> bool:
        """Whether the job has been in its batch, and was deleted."""

    def takes(self, job: NewJob) -> bool:
        """Whether its batch, if it has one, runs."""

    def join(self, job: NewJob) -> None:
        """Raises Conflict(BATCH_CLOSED) if its batch does not run."""

    def left(self, job: NewJob, record: JobRecord) -> None:
        """The job is forgotten."""

    def kept_until(self, job: NewJob, *, full: bool) -> datetime | None:
        """Until when the batch keeps a job past its retention; None if it does not.

        `full`: the owner nears what it may keep; a batch that has not ended keeps nothing then.
        """

    def known(self, ids: Collection[str]) -> frozenset[str]:
        """Those that are ids of batches."""


class NoBatches:
    def deleted(self, job: NewJob) -> bool:
        del job
        return False

    def takes(self, job: NewJob) -> bool:
        del job
        return True

    def join(self, job: NewJob) -> None:
        del job

    def left(self, job: NewJob, record: JobRecord) -> None:
        del job, record

    def kept_until(self, job: NewJob, *, full: bool) -> datetime | None:
        del job, full
        return None

    def known(self, ids: Collection[str]) -> frozenset[str]:
        del ids
        return frozenset()
