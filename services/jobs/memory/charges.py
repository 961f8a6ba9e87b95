"""What each owner's jobs of a day are charged: by the estimate first, then by the bill."""

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta

from services.jobs.limits import quota_exceeded
from services.jobs.record import NewJob


class Charges:
    """Days are those of UTC, and of the making of a job."""

    def __init__(self) -> None:
        self._charged: defaultdict[tuple[str, date], int] = defaultdict(int)
        self._open: dict[str, tuple[str, date, int]] = {}

    def admit(self, job: NewJob, now: datetime) -> None:
        """Raises Limited(QUOTA_EXCEEDED) if the job's estimate is more than what is left of its owner's day."""
        bound = job.limits.daily_token_layers
        charged, resets_in = self.charged(job.owner, now)
        if bound is not None and charged + job.cost > bound:
            raise quota_exceeded(job.cost, charged, bound, resets_in)

    def charged(self, owner: str, now: datetime) -> tuple[int, timedelta]:
        """What the owner is charged today, and how long the day still is."""
        today = now.astimezone(UTC).date()
        midnight = datetime.combine(today + timedelta(days=1), datetime.min.time(), UTC)
        return self._charged[owner, today], midnight - now

    def charge(self, job: NewJob, now: datetime) -> None:
        today = now.astimezone(UTC).date()
        self._charged[job.owner, today] += job.cost
        self._open[job.id] = (job.owner, today, job.cost)

    def settle(self, job_id: str, bill: int) -> None:
        """Replace a job's estimate by its bill; a second time changes nothing."""
        if job_id in self._open:
            owner, day, cost = self._open.pop(job_id)
            self._charged[owner, day] += bill - cost
