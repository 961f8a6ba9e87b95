"""How long one owner's backlog delays another's job, in chunks of forwards: the line of jobs, the slots of a worker and
the engine's scheduler together, without a clock.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
import torch

from services.engine.lane import Lane
from services.engine.row import Row
from services.engine.scheduler import Scheduler, Task
from services.engine.ticket import JobTicket
from services.jobs.record import Claim, Size
from services.models.load import LoadedModel
from tests.services.engine.conftest import LoadTiny, load_tiny
from tests.services.jobs.bench import POLICY, memory_bench
from tests.services.jobs.samples import DONE
from worker.slots import Slots

__all__ = ["load_tiny"]

SLOTS, LARGE_SLOTS = 32, 24
BATCH_TOKENS = 100
ROW_TOKENS = 10
BACKLOG = 500
ROWS = {Size.SMALL: 8, Size.LARGE: 200}
"""Of one of the backlog's jobs: less than a chunk, and twenty."""


@dataclass
class Running:
    claim: Claim
    stack: ExitStack
    left: int


class Worker:
    """A worker without threads: slots are filled, then one chunk runs."""

    def __init__(self, model: LoadedModel) -> None:
        self.bench = memory_bench(replace(POLICY, max_queued=2 * BACKLOG))
        self.slots = Slots(SLOTS, LARGE_SLOTS)
        self.scheduler = Scheduler()
        self.model = model
        self.running: dict[str, Running] = {}

    def fill_slots(self) -> None:
        while len(self.running) < SLOTS:
            stack = ExitStack()
            claim = stack.enter_context(self.slots.next_job(self._claim))
            if claim is None:
                return
            rows = 1 if claim.job.owner == "bob" else ROWS[claim.size]
            self.running[claim.job.id] = Running(claim, stack, rows)
            ticket = JobTicket(claim.job.id, claim.job.owner, background=claim.job.priority == "batch")
            self.scheduler.add(self._task(ticket, kind=claim.job.label or "", order=order) for order in range(rows))

    def run_chunk(self) -> Counter[str]:
        """How many rows of each owner ran."""
        chunk = self.scheduler.next_batch(BATCH_TOKENS)
        for task in chunk:
            running = self.running[task.ticket.id]
            running.left -= 1
            if not running.left:
                assert self.bench.store.finish(running.claim, DONE)
                running.stack.close()
                del self.running[task.ticket.id]
        return Counter(task.ticket.owner for task in chunk)

    def _claim(self, sizes: Sequence[Size], without: Mapping[Size, Collection[str]]) -> Claim | None:
        return self.bench.store.claim("default", "w1", sizes, without)

    def _task(self, ticket: JobTicket, *, kind: str, order: int) -> Task:
        row = Lane(Row((5,) * ROW_TOKENS), ticket.owner)
        return Task(self.model, row, kind, (order,), tokens=ROW_TOKENS, cost=1, ticket=ticket, foreseen={})


@pytest.fixture(scope="module")
def model(load_tiny: LoadTiny) -> LoadedModel:
    return load_tiny("llama", torch.float32)


@pytest.mark.parametrize("priority", ["interactive", "batch"])
@pytest.mark.parametrize("kind", ["same", "other"])
@pytest.mark.parametrize(("size", "backlog"), [(Size.SMALL, Size.SMALL), (Size.SMALL, Size.LARGE), (Size.LARGE,) * 2])
def test_a_backlog_of_500_jobs_delays_anothers_single_job_by_one_chunk_at_most(
    model: LoadedModel, size: Size, backlog: Size, kind: str, priority: str
) -> None:
    """The single job has one row: alone it would be done with the chunk after its submission."""
    worker = Worker(model)
    for _ in range(BACKLOG):
        worker.bench.submit("ada", backlog, priority="batch", label="same")
    for _ in range(7):
        worker.fill_slots()
        worker.run_chunk()
    worker.fill_slots()
    single = worker.bench.submit("bob", size, priority=priority, label=kind)
    chunks: list[Counter[str]] = []
    while not worker.bench.record(single).status.terminal:
        worker.fill_slots()
        chunks.append(worker.run_chunk())
    assert len(chunks) <= 2
    if priority == "interactive":
        assert chunks[-1] == {"bob": 1}, "its own chunk is as short as on an idle worker"
    assert worker.bench.store.depth("default") > BACKLOG // 2
