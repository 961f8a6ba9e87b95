"""Jobs are answered, deleted and swept all at once on a real server: what is left can be read, every one of it."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from services.adapters.folder_blobs import FolderBlobs
from services.adapters.redis_cache import RedisResultCache
from services.adapters.redis_client import make_client
from services.adapters.redis_jobs import RedisJobStore
from services.contracts.errors import Conflict, NotFound
from services.jobs.cache import ResultCache
from services.jobs.memory import MemoryDoorbell
from services.jobs.ports import Blobs, JobFilter, JobStore
from services.jobs.reaper import Reaper
from services.jobs.record import NewJob, Size, Succeeded, Ties
from services.jobs.results import copy_result, load_tensors, store_result
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import new_job, patching_result

LARGE = patching_result(np.ones((30, 1_000), dtype=np.float32), [[1.0]])
ROUNDS = 30
DELETED = 0.4
"""Jobs that are deleted for each one that is asked for."""
QUESTIONS = ("q1:made-so", "q2:made-so")


@dataclass
class Room:
    """Everything that a gateway, a worker and a reaper share."""

    store: JobStore
    results: ResultCache
    blobs: Blobs

    def ask(self, draw: random.Random) -> bool:
        """Whether the result cache had the answer; else the job is run, or another that waits."""
        job = new_job().model_copy(update={"ties": Ties(cache_entry=draw.choice(QUESTIONS))})
        if self.answered(job):
            return True
        self.store.create(job)
        claim = self.store.claim("default", f"w{draw.random()}", tuple(Size))
        if claim is not None:
            stored = store_result(self.blobs, claim.job.id, claim.attempt, LARGE)
            self.store.finish(claim, Succeeded(stored, "made-so"))
        return False

    def answered(self, job: NewJob) -> bool:
        source = self.results.find(job)
        if source is None:
            return False
        try:
            copy = copy_result(self.blobs, source, job.id)
        except NotFound:
            return False
        return self.results.answer(job, source, copy) is not None

    def forget(self, draw: random.Random) -> None:
        job_id = draw.choice(self.store.list("ada", JobFilter(), None, 20).jobs).id
        with suppress(Conflict):  # it runs: it is not deleted
            if self.store.delete(job_id) is not None:
                self.blobs.delete(job_id)


def test_what_is_left_of_answers_among_deletions_and_sweeps_is_whole(redis_url: str, tmp_path: Path) -> None:
    policy = replace(POLICY, reap_every_s=0, sweep_every_s=0, max_queued=10_000)
    with make_client(redis_url, patient=True) as client:
        blobs = FolderBlobs(tmp_path / "blobs")
        room = Room(RedisJobStore(client, policy), RedisResultCache(client, policy), blobs)
        reaper = Reaper(room.store, blobs, MemoryDoorbell(), every_s=1)
        over = threading.Event()

        def sweeping() -> None:
            while not over.is_set():
                reaper.round()

        def asking(seed: int) -> list[bool]:
            draw = random.Random(seed)
            hits = []
            for _ in range(ROUNDS):
                hits.append(room.ask(draw))
                if draw.random() < DELETED:
                    room.forget(draw)
            return hits

        with ThreadPoolExecutor(4) as pool:
            sweeper = pool.submit(sweeping)
            try:
                answered = [hit for hits in pool.map(asking, (1, 2, 3)) for hit in hits]
            finally:
                over.set()
            sweeper.result()
        assert any(answered)
        assert not all(answered)
        left = room.store.list("ada", JobFilter(), None, 1_000).jobs
        records = [record for job in left if (record := room.store.get(job.id)) is not None and record.result]
        assert any(record.cached for record in records)
        for record in records:
            assert load_tensors(record, blobs)["effects"].shape == (30, 1_000)
