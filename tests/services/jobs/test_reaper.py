"""A round of the reaper, beyond what the store does in it."""

import threading
import time

from services.contracts.errors import ErrorCode, Unavailable
from services.jobs.ids import new_blob_key, new_job_id
from services.jobs.memory import MemoryBlobs, MemoryDoorbell
from services.jobs.policy import JobPolicy
from services.jobs.ports import Reaped
from services.jobs.reaper import RINGS_AT_ONCE, Reaper
from tests.services.jobs.bench import POLICY, Bench, memory_bench
from tests.services.jobs.samples import DONE


def reaper_of(bench: Bench, blobs: MemoryBlobs, doorbell: MemoryDoorbell) -> Reaper:
    return Reaper(bench.store, blobs, doorbell, every_s=POLICY.reap_every_s)


def test_it_rings_for_jobs_that_nobody_claimed_and_not_before() -> None:
    bench, doorbell = memory_bench(), MemoryDoorbell()
    reaper = reaper_of(bench, MemoryBlobs(), doorbell)
    bench.submit()
    reaper.round()
    assert doorbell.waiting("default") == 0
    bench.advance(POLICY.ring_after_s)
    reaper.round()
    assert doorbell.waiting("default") == 1


def test_rings_that_nobody_hears_do_not_pile_up() -> None:
    bench, doorbell = memory_bench(), MemoryDoorbell()
    reaper = reaper_of(bench, MemoryBlobs(), doorbell)
    for _ in range(POLICY.max_queued):
        bench.submit()
    for _ in range(100):
        bench.advance(POLICY.ring_after_s)
        reaper.round()
    assert doorbell.waiting("default") == RINGS_AT_ONCE


def test_it_deletes_the_blobs_of_jobs_past_their_retention() -> None:
    bench, blobs = memory_bench(), MemoryBlobs()
    reaper = reaper_of(bench, blobs, MemoryDoorbell())
    expired, kept = bench.submit(), bench.submit()
    for job_id in (expired, kept):
        blobs.put(new_blob_key(job_id, 1), b"x")
    bench.store.finish(bench.claim(), DONE)
    bench.advance(POLICY.retention_s)
    reaper.round()
    assert blobs.jobs() == [kept]


def test_it_sweeps_blobs_without_a_job() -> None:
    bench, blobs = memory_bench(), MemoryBlobs()
    kept = bench.submit()
    for job_id in (kept, new_job_id()):
        blobs.put(new_blob_key(job_id, 1), b"x")
    reaper_of(bench, blobs, MemoryDoorbell()).round()
    assert blobs.jobs() == [kept]


class _OutOfReach(MemoryBlobs):
    """A store of blobs that answers from the third time on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.answered = threading.Event()

    def jobs(self) -> list[str]:
        self.asked += 1
        if self.asked < 3:
            raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "no answer")
        self.answered.set()
        return []


def test_it_goes_on_after_a_round_that_failed_and_ends_when_told() -> None:
    blobs = _OutOfReach()
    eager = JobPolicy(reap_every_s=0, sweep_every_s=0)
    reaper = Reaper(memory_bench(eager).store, blobs, MemoryDoorbell(), every_s=0.001)
    reaper.start()
    assert blobs.answered.wait(5)
    began = time.monotonic()
    reaper.stop()
    assert time.monotonic() - began < 1


def test_a_round_out_of_turn_does_nothing() -> None:
    bench = memory_bench()
    reaper = reaper_of(bench, MemoryBlobs(), MemoryDoorbell())
    reaper.round()
    assert reaper.round() == Reaped()
