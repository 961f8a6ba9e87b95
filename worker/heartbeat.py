"""The worker's heartbeat: one thread that keeps its claims alive, carries progress out and orders to stop in.

It beats through model loading and long chunks alike. When the store does not answer it tries again at the next beat: a
lease that nobody else took in the meantime is revived.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from services.contracts.errors import Unavailable
from services.jobs.ports import JobStore, WorkerRegistry, WorkerState
from services.jobs.record import Beat, Claim
from worker.running import RunningJob

log = logging.getLogger("lensd.worker")


def _ignore() -> None:
    pass


class Heartbeat:
    """Beats every `every_s` for whatever is being worked on; announces the worker itself with each beat."""

    def __init__(
        self,
        store: JobStore,
        registry: WorkerRegistry,
        state: Callable[[], WorkerState],
        every_s: float,
        on_beat: Callable[[], None] = _ignore,
    ) -> None:
        self._store = store
        self._registry = registry
        self._state = state
        self._every_s = every_s
        self._on_beat = on_beat
        self.roomy = False
        """Whether the store had room for results at the last beat."""
        self._jobs: dict[str, RunningJob] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    @contextmanager
    def keeping(self, claim: Claim) -> Iterator[RunningJob]:
        """Keep `claim` alive for the length of the block; an earlier claim on the same job has thereby lost it."""
        job = RunningJob(claim)
        with self._lock:
            earlier = self._jobs.get(claim.job.id)
            if earlier is not None:
                earlier.hear(Beat(held=False))
            self._jobs[claim.job.id] = job
        try:
            yield job
        finally:
            with self._lock:
                if self._jobs.get(claim.job.id) is job:
                    del self._jobs[claim.job.id]

    def running(self) -> list[RunningJob]:
        with self._lock:
            return list(self._jobs.values())

    def _beat_on(self) -> None:
        answered = True
        while not self._ending.wait(self._every_s):
            try:
                self._beat()
            except Unavailable as error:
                if answered:
                    log.warning("the job store does not answer, trying on: %s", error.message)
                answered = False
            else:
                if not answered:
                    log.warning("the job store answers again")
                answered = True

    def _beat(self) -> None:
        # The claims first: whatever else the store refuses must not cost them their leases.
        if jobs := self.running():
            self._beat_for(jobs)
        self._on_beat()
        self._registry.announce(self._state(), ttl_s=max(5.0, 6 * self._every_s))
        self.roomy = self._store.roomy()

    def _beat_for(self, jobs: Sequence[RunningJob]) -> None:
        beats = self._store.heartbeat([job.claim for job in jobs])
        for job in jobs:
            job.hear(beats[job.claim.job.id])
            progress, tokens = job.fresh_progress(), job.fresh_tokens()
            if progress is not None or tokens:
                self._store.progress(job.claim, progress or job.progress, tokens)
                job.told(tokens)
