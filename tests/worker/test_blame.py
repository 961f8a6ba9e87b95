"""Who is blamed for the death of a worker: whose rows run, and who has long worked by itself."""

import pytest

from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import Size
from tests.services.jobs.samples import new_job
from worker.blame import Blame
from worker.running import RunningJob


class Workshop:
    """Two running jobs, and what the store was told of them."""

    def __init__(self) -> None:
        store = MemoryJobStore(JobPolicy())
        self.jobs: list[RunningJob] = []
        for _ in range(2):
            store.create(new_job())
            claim = store.claim("default", "w", tuple(Size))
            assert claim is not None
            self.jobs.append(RunningJob(claim))
        self.said: list[list[str]] = []
        self.blame = Blame(lambda claims: self.said.append([claim.job.id for claim in claims]), lambda: self.jobs)

    @property
    def ids(self) -> list[str]:
        return [job.claim.job.id for job in self.jobs]


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


def test_a_batch_blames_the_jobs_whose_rows_it_has_and_an_idle_engine_those_it_has_served(workshop: Workshop) -> None:
    first, _ = workshop.ids
    workshop.blame.batch(frozenset({first}))
    with workshop.jobs[0].ticket.in_engine():
        workshop.blame.batch(frozenset())
    workshop.jobs.pop(0)
    workshop.blame.look()
    assert workshop.said == [[first], [first], []]


def test_a_job_that_puts_its_result_together_for_long_is_to_blame_too(workshop: Workshop) -> None:
    first, second = workshop.ids
    with workshop.jobs[0].ticket.in_engine():
        workshop.blame.look()
    workshop.blame.look()
    assert workshop.said == [], "it may be done at once"
    workshop.blame.look()
    workshop.blame.batch(frozenset({second}))
    assert workshop.said == [[first], [first, second]]
    workshop.jobs.pop(0)
    workshop.blame.look()
    assert workshop.said[2:] == [[second]]


def test_a_job_that_waits_for_its_model_or_for_the_engine_is_not(workshop: Workshop) -> None:
    workshop.blame.look()
    with workshop.jobs[0].ticket.in_engine():
        workshop.blame.look()
        workshop.blame.look()
    assert workshop.said == []
