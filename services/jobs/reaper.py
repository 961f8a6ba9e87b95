"""The reaper: what keeps the promise that no accepted job is forgotten and no ended one kept for ever.

It runs in every process; the store lets one of them go round at a time. Should that one die between the store's part
and its own, the next rounds make up for it: jobs that still wait are rung for again, blobs without a job are swept.
"""

import logging
import threading

from services.contracts.errors import Unavailable
from services.jobs.ports import Blobs, Doorbell, JobStore, Reaped

RINGS_AT_ONCE = 32
"""Enough to wake every slot of a worker, few enough never to pile up."""

_log = logging.getLogger(__name__)


class Reaper:
    """Goes round every `every_s` until stopped."""

    def __init__(self, store: JobStore, blobs: Blobs, doorbell: Doorbell, every_s: float) -> None:
        self._store = store
        self._blobs = blobs
        self._doorbell = doorbell
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._go_round, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    def round(self) -> Reaped:
        """One round, if it is this process's turn. Raises Unavailable."""
        reaped = self._store.reap()
        for pool, jobs in reaped.unclaimed.items():
            self._ring(pool, jobs)
        for job_id in reaped.forgotten:
            self._blobs.delete(job_id)
        if reaped.sweep:
            self._sweep()
        for what, job_ids in (("handed back", reaped.handed_back), ("ended", reaped.ended)):
            if job_ids:
                _log.warning("%s without their worker's word: %s", what, ", ".join(job_ids))
        return reaped

    def _ring(self, pool: str, jobs: int) -> None:
        unheard = self._doorbell.waiting(pool)
        for _ in range(min(jobs, RINGS_AT_ONCE) - (unheard or 0)):
            self._doorbell.ring(pool)

    def _sweep(self) -> None:
        # Blobs are listed before the records are looked up: a job exists before its first blob.
        owners = self._blobs.jobs()
        for job_id in set(owners) - self._store.known(owners):
            _log.warning("deleting the blobs of %s, which has no record", job_id)
            self._blobs.delete(job_id)

    def _go_round(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.round()
            except Unavailable as error:
                _log.warning("the reaper waits: %s", error.message)
            except Exception:
                _log.exception("a round of the reaper failed")
