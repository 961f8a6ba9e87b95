"""The server is killed while jobs are being submitted and worked on: none is lost, none ends twice."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.adapters.redis_client import make_client
from services.adapters.redis_jobs import RedisJobStore
from services.contracts.errors import Unavailable
from services.jobs.policy import JobPolicy
from services.jobs.record import NewJob, Size
from tests.services.adapters.valkey import valkey_server
from tests.services.jobs.samples import DONE, new_job

# A claim whose answer the outage swallowed is handed back after its lease: short, for the test's sake.
POLICY = JobPolicy(lease_s=1, reap_every_s=0.2)
JOBS = 400
KILLS = 3


def test_killing_the_server_loses_no_accepted_job_and_ends_none_twice(tmp_path: Path) -> None:
    jobs = [new_job(f"owner-{i % 4}") for i in range(JOBS)]
    accepted: Counter[str] = Counter()
    all_done = threading.Event()
    with valkey_server(tmp_path) as server, ThreadPoolExecutor(8) as threads:

        def submit(job: NewJob) -> None:
            while True:
                try:
                    store.create(job)
                except Unavailable:
                    time.sleep(0.05)
                else:
                    time.sleep(0.005)
                    return

        def work(name: str) -> None:
            while not all_done.is_set():
                claim = patient.claim("default", name, tuple(Size))
                if claim is None:
                    time.sleep(0.01)
                elif patient.finish(claim, DONE):
                    accepted[claim.job.id] += 1

        with make_client(server.url, patient=True) as one, make_client(server.url, patient=False) as other:
            patient, store = RedisJobStore(one, POLICY), RedisJobStore(other, POLICY)
            workers = [threads.submit(work, f"w{i}") for i in range(4)]
            submitting = [threads.submit(submit, job) for job in jobs]
            try:
                for _ in range(KILLS):
                    time.sleep(0.3)
                    server.kill()
                    time.sleep(0.2)
                    server.start()
                for future in submitting:
                    future.result(timeout=30)
                give_up_at = time.monotonic() + 30
                while len(accepted) < JOBS and time.monotonic() < give_up_at:
                    store.reap()
                    time.sleep(0.05)
            finally:
                all_done.set()
            for worker in workers:
                worker.result(timeout=30)
            assert Counter({job.id: 1 for job in jobs}) == accepted
            assert all((record := store.get(job.id)) and record.result == DONE.result for job in jobs)
