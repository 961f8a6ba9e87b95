"""Who is to blame should this worker die now: the jobs of the engine's batch, and those long at work by themselves.

The engine says before a batch runs whose rows it has. A job that puts a large result together, or stores it, is in no
batch: it counts from the second beat on that finds it at that, and at once where the engine has nothing else to do.
What is over sooner is not told, since every job would pay two round trips to the store for it.
"""

import threading
from collections.abc import Callable, Sequence

from services.jobs.record import Claim
from worker.running import RunningJob

Jobs = frozenset[str]


class Blame:
    """`say` tells the store, and is called whenever somebody else is to blame; `running` are this worker's jobs."""

    def __init__(self, say: Callable[[Sequence[Claim]], None], running: Callable[[], Sequence[RunningJob]]) -> None:
        self._say = say
        self._running = running
        self._lock = threading.Lock()
        self._batch: Jobs = frozenset()
        self._by_themselves: Jobs = frozenset()
        self._for_long: Jobs = frozenset()

    def batch(self, job_ids: Jobs) -> None:
        """These jobs' rows are about to run; none when the engine is idle. On the engine's thread."""
        with self._lock:
            self._batch = job_ids
            if not job_ids:
                self._for_long = self._by_themselves = self._ids(lambda job: job.ticket.entered)
            self._tell()

    def look(self) -> None:
        """See who works by itself; once a beat."""
        now = self._ids(lambda job: job.ticket.by_itself)
        with self._lock:
            for_long, self._by_themselves = now & self._by_themselves, now
            if for_long != self._for_long:
                self._for_long = for_long
                self._tell()

    def _ids(self, which: Callable[[RunningJob], bool]) -> Jobs:
        return frozenset(job.claim.job.id for job in self._running() if which(job))

    def _tell(self) -> None:
        suspects = self._batch | self._for_long
        self._say([job.claim for job in self._running() if job.claim.job.id in suspects])
