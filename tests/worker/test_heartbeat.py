"""The heartbeat on the stores' fakes: what it carries out and what it brings in."""

from collections.abc import Iterator

import pytest

from services.contracts.errors import ErrorCode, Unavailable
from services.contracts.generation import NewTokens
from services.contracts.job import JobProgress, JobStatus
from services.jobs.memory import MemoryJobStore, MemoryWorkers
from services.jobs.policy import JobPolicy
from services.jobs.ports import WorkerState
from services.jobs.record import Claim, Size
from tests.processes import eventually
from tests.services.jobs.samples import new_job
from worker.heartbeat import Heartbeat

STATE = WorkerState(worker="w", pool="default", models={"tiny": "loading"})


@pytest.fixture
def store() -> MemoryJobStore:
    return MemoryJobStore(JobPolicy())


@pytest.fixture
def workers() -> MemoryWorkers:
    return MemoryWorkers()


@pytest.fixture
def heartbeat(store: MemoryJobStore, workers: MemoryWorkers) -> Iterator[Heartbeat]:
    beating = Heartbeat(store, workers, lambda: STATE, every_s=0.01)
    beating.start()
    yield beating
    beating.stop()


def claimed(store: MemoryJobStore) -> Claim:
    store.create(new_job())
    claim = store.claim("default", "w", tuple(Size))
    assert claim is not None
    return claim


@pytest.mark.usefixtures("heartbeat")
def test_the_worker_is_announced_with_its_models(workers: MemoryWorkers) -> None:
    assert eventually(lambda: list(workers.alive()) == [STATE])


def test_progress_reaches_the_record(store: MemoryJobStore, heartbeat: Heartbeat) -> None:
    claim = claimed(store)
    with heartbeat.keeping(claim) as job:
        job.ticket.plan(4)
        job.ticket.charge(rows=2, token_layers=1.0, seconds=0.1)
        expected = JobProgress(done=2, planned=4)
        assert eventually(lambda: (record := store.get(claim.job.id)) is not None and record.progress == expected)


def test_new_tokens_reach_who_watches_the_job(store: MemoryJobStore, heartbeat: Heartbeat) -> None:
    claim = claimed(store)
    token = NewTokens(prompt=0, strength=1.5, first=0, tokens=(7,), strings=(" a",), log_probs=(-0.5,))
    with heartbeat.keeping(claim) as job:
        job.note_token(token)
        assert eventually(lambda: any(event.tokens == (token,) for event in store.events[claim.job.id]))
        assert job.fresh_tokens() == ()


def test_a_cancel_reaches_the_running_job(store: MemoryJobStore, heartbeat: Heartbeat) -> None:
    claim = claimed(store)
    with heartbeat.keeping(claim) as job:
        store.cancel(claim.job.id)
        assert eventually(job.ticket.cancelled)


class RefusingWorkers(MemoryWorkers):
    """A registry that takes no announcement."""

    def announce(self, state: WorkerState, ttl_s: float) -> None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store's memory is full")


def test_claims_are_kept_also_where_the_worker_cannot_be_announced(store: MemoryJobStore) -> None:
    heartbeat = Heartbeat(store, RefusingWorkers(), lambda: STATE, every_s=0.01)
    heartbeat.start()
    try:
        claim = claimed(store)
        with heartbeat.keeping(claim) as job:
            store.cancel(claim.job.id)
            assert eventually(job.ticket.cancelled)
    finally:
        heartbeat.stop()


def test_a_job_that_ended_elsewhere_is_dropped(store: MemoryJobStore, heartbeat: Heartbeat) -> None:
    claim = claimed(store)
    with heartbeat.keeping(claim) as job:
        store.release(claim)
        other = store.claim("default", "other", tuple(Size))
        assert other is not None
        assert eventually(job.ticket.cancelled)
    record = store.get(claim.job.id)
    assert record is not None
    assert record.status is JobStatus.RUNNING


def test_a_job_claimed_again_by_the_same_worker_takes_its_earlier_attempts_place(
    store: MemoryJobStore, heartbeat: Heartbeat
) -> None:
    first = claimed(store)
    with heartbeat.keeping(first) as earlier:
        store.release(first)
        second = store.claim("default", "w", tuple(Size))
        assert second is not None
        with heartbeat.keeping(second) as later:
            assert earlier.ticket.cancelled()
            assert heartbeat.running() == [later]
            assert not later.ticket.cancelled()
        assert heartbeat.running() == []
