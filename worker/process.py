"""The worker process: its composition root, and what happens when the doorbell rings.

1. a slot wakes, claims jobs one after another until none is left for it, and goes back to sleep, but for one that
   listens at the door: an idle worker hears of a job without being woken;
2. a claimed job gets its model (loaded once, kept hot, pinned while in use) and its SAE, and runs its method;
3. the result is stored, then the job is finished with the claim's fencing token: a stale claim changes nothing;
4. asked to stop, the worker claims nothing more, lets its jobs run on for a while, then hands the rest back.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

from services.adapters.celery_doorbell import CeleryDoorbell
from services.adapters.folder_blobs import FolderBlobs
from services.adapters.redis_blobs import RedisBlobs
from services.adapters.redis_client import check_server, make_client
from services.adapters.redis_doorbell import RedisDoorbell, RedisDoorstep
from services.adapters.redis_jobs import RedisJobStore
from services.adapters.redis_workers import RedisWorkers
from services.catalogue.catalogue import open_catalogue
from services.contracts.errors import Unavailable
from services.contracts.job import JobResult
from services.jobs.ports import WorkerState
from services.jobs.reaper import Reaper
from services.jobs.record import Claim, Size, Succeeded
from services.jobs.results import store_result
from services.logs import job_id
from services.metrics import listening
from worker.blame import Blame
from worker.heartbeat import Heartbeat
from worker.laboratory import Laboratory
from worker.metrics import WorkerMetrics
from worker.running import RunningJob
from worker.settings import WorkerSettings
from worker.slots import Slots

log = logging.getLogger("lensd.worker")

POLL_S = 0.1
LISTEN_S = 0.5
"""How long a slot listens before it looks whether the worker drains."""


class WorkerProcess:
    """Everything that one worker owns. `start` connects, `preload` loads; `answer` is called by any number of slots."""

    def __init__(self, settings: WorkerSettings) -> None:
        policy = settings.job_policy()
        url = settings.store_url
        patient, quick = make_client(url, patient=True), make_client(url, patient=False)
        check_server(patient, ephemeral=settings.store_ephemeral)
        self._settings = settings
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._store = RedisJobStore(patient, policy)
        # What comes again by itself, or must not hold up the engine, does not wait for the store to come back.
        self._quick_store = RedisJobStore(quick, policy)
        self._registry = RedisWorkers(quick)
        self._doorbell = RedisDoorbell(quick, CeleryDoorbell(url))
        self._doorstep = RedisDoorstep(quick)
        self._at_the_door = threading.Lock()
        self._blobs = (
            RedisBlobs(patient, settings.max_redis_blobs)
            if settings.blobs == "redis"
            else FolderBlobs(settings.home / "blobs")
        )
        self._blame = Blame(self._tell_who_is_to_blame, self._running)
        self._laboratory = Laboratory(settings, open_catalogue(settings.home), self._blame.batch)
        self._heartbeat = Heartbeat(
            self._quick_store, self._registry, self._state, policy.heartbeat_s, self._blame.look
        )
        self._reaper = Reaper(self._quick_store, self._blobs, self._doorbell, every_s=policy.reap_every_s)
        self._slots = Slots(settings.slots, settings.large_slots)
        self._metrics = WorkerMetrics(lambda: len(self._heartbeat.running()))
        self._listening = ExitStack()
        self._draining = threading.Event()
        self._preloading = threading.Event()

    def start(self) -> None:
        """Begin to beat, to go round as a reaper, and to show figures where a port is set."""
        settings = self._settings
        self._listening.enter_context(
            listening(self._metrics.registry, settings.metrics_host, settings.worker_metrics_port)
        )
        self._heartbeat.start()
        self._reaper.start()

    def preload(self) -> None:
        """Load the pool's models in the background, once: the first job waits for its own alone.

        Not before Celery is set up: it writes the process's environment, and torch, which reads it as it loads, would
        crash where the two meet.
        """
        if self._settings.preload and not self._preloading.is_set():
            self._preloading.set()
            threading.Thread(target=self._laboratory.preload, name="preload", daemon=True).start()

    def answer(self) -> None:
        """Claim and run jobs until there are none for this slot and another one listens, or the worker drains."""
        self._work_off()
        while self._at_the_door.acquire(blocking=False):
            try:
                rang = self._listen()
            finally:
                self._at_the_door.release()
            if not rang:
                return
            self._work_off()

    def answer_soon(self) -> None:
        """Look for work that was queued while nobody listened."""
        self._doorbell.ring(self._settings.pool)

    def drain(self) -> None:
        """Claim nothing more; after a while make what still runs stop, to be handed back."""
        if self._draining.is_set():
            return
        self._draining.set()
        threading.Thread(target=self._hand_back_late, name="drain", daemon=True).start()

    def stop(self) -> None:
        """End every thread, and leave the list of workers."""
        self._draining.set()
        self._reaper.stop()
        self._heartbeat.stop()
        self._laboratory.close()
        self._listening.close()
        try:
            self._registry.retire(self._name)
        except Unavailable:
            log.warning("the job store does not answer: this worker's name will expire by itself")

    def _work_off(self) -> None:
        while True:
            with self._slots.next_job(self._claim) as claim:
                if claim is None:
                    return
                token = job_id.set(claim.job.id)
                try:
                    self._run(claim)
                finally:
                    job_id.reset(token)

    def _listen(self) -> bool:
        """Wait for a ring; False when the worker drains, or the store does not answer."""
        pool = self._settings.pool
        try:
            while not self._draining.is_set():
                if self._doorstep.listen(pool, self._name, LISTEN_S):
                    return True
            if self._doorstep.leave(pool, self._name):
                self._doorbell.ring(pool)
        except Unavailable as error:
            log.warning("nobody listens for jobs until it rings again: %s", error.message)
        return False

    def _claim(self, sizes: Sequence[Size], without: Mapping[Size, Collection[str]]) -> Claim | None:
        if self._draining.is_set():
            return None
        try:
            return self._store.claim(self._settings.pool, self._name, sizes, without)
        except Unavailable as error:
            log.warning("no job could be claimed: %s", error.message)
            return None

    def _run(self, claim: Claim) -> None:
        with self._heartbeat.keeping(claim) as job:
            log.info("job %s: %s, attempt %s", claim.job.id, claim.spec.kind, claim.attempt)
            ending = job.work(lambda: self._laboratory.run(claim, job.ticket, job.note_token), self._keep)
            self._metrics.note_work(job.ticket.token_layers)
            try:
                if ending is not None:
                    accepted = self._store.finish(claim, ending, job.fresh_progress(), job.ticket.token_layers)
                    if accepted:
                        self._metrics.note_end(claim.spec.kind, ending)
                    log.info("job %s: %s%s", claim.job.id, type(ending).__name__, "" if accepted else ", too late")
                elif job.handed_back:
                    self._store.release(claim)
                    log.info("job %s: handed back", claim.job.id)
                else:
                    log.info("job %s: dropped, too late: it is another's or has ended", claim.job.id)
            except Unavailable as error:
                log.error("job %s: its end could not be stored, it will run again: %s", claim.job.id, error.message)

    def _keep(self, claim: Claim, result: JobResult) -> Succeeded:
        stored = store_result(self._blobs, claim.job.id, claim.attempt, result, roomy=self._heartbeat.roomy)
        return Succeeded(stored, self._laboratory.fingerprint_of(claim.spec))

    def _hand_back_late(self) -> None:
        deadline = time.monotonic() + self._settings.drain_s
        while self._heartbeat.running() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for job in self._heartbeat.running():
            job.hand_back()

    def _running(self) -> Sequence[RunningJob]:
        return self._heartbeat.running()

    def _tell_who_is_to_blame(self, claims: Sequence[Claim]) -> None:
        """These jobs are blamed if this process dies now."""
        try:
            self._quick_store.executing(self._name, claims)
        except Unavailable as error:
            log.warning("the job store does not know what runs now: %s", error.message)

    def _state(self) -> WorkerState:
        return WorkerState(
            worker=self._name,
            pool=self._settings.pool,
            models=self._laboratory.models(),
            runner=self._laboratory.runner,
        )
