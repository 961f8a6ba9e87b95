"""The jobs that the fake of the job store keeps, and what it asks of them all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.contracts.job import JobStatus
from services.jobs.ports import JobFilter
from services.jobs.record import JobRecord, NewJob, Size

LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass
class KeptJob:
    """A job with what its record does not show."""

    new: NewJob
    size: Size
    number: int
    record: JobRecord
    queued_since: datetime = LONG_AGO
    worker: str | None = None
    lease_until: datetime = LONG_AGO
    blamed: int = 0
    unexplained: int = 0
    suspected: str | None = None


class KeptJobs(dict[str, KeptJob]):
    """By id."""

    def living_of(self, owner: str) -> Sequence[KeptJob]:
        return [job for job in self.values() if job.new.owner == owner and not job.record.status.terminal]

    def of(self, owner: str) -> Sequence[KeptJob]:
        return [job for job in self.values() if job.new.owner == owner]

    def with_status(self, status: JobStatus) -> Sequence[KeptJob]:
        return [job for job in self.values() if job.record.status is status]

    def depth(self, pool: str) -> int:
        return sum(job.new.pool == pool for job in self.with_status(JobStatus.QUEUED))

    def waiting_since(self, moment: datetime) -> Mapping[str, int]:
        """Pool → jobs that have waited since then or longer."""
        return Counter(job.new.pool for job in self.with_status(JobStatus.QUEUED) if job.queued_since <= moment)

    def older_than(self, number: int | None, owner: str, where: JobFilter) -> Sequence[tuple[int, JobRecord]]:
        """The owner's jobs created before, newest first."""
        return [
            (job.number, job.record)
            for job in sorted(self.values(), key=lambda job: -job.number)
            if job.new.owner == owner and where.admits(job.record) and (number is None or job.number < number)
        ]
