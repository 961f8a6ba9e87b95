"""Whose rows run next: bookkeeping alone, no engine."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.engine.lane import Lane
from services.engine.row import Row
from services.engine.scheduler import Scheduler, Task
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel
from tests.services.engine.conftest import LoadTiny


@pytest.fixture(scope="module")
def model(load_tiny: LoadTiny) -> LoadedModel:
    return load_tiny("llama", torch.float32)


def task(model: LoadedModel, ticket: JobTicket, order: int, *, tokens: int = 10, kind: str = "a") -> Task:
    lane = Lane(Row((5,) * tokens), ticket.owner)
    return Task(model, lane, kind, (order,), tokens=tokens, cost=tokens, ticket=ticket, foreseen={})


def drained(scheduler: Scheduler, limit: int) -> list[list[Task]]:
    batches = []
    while batch := scheduler.next_batch(limit):
        batches.append(batch)
    return batches


def counts(batch: Sequence[Task]) -> dict[str, int]:
    return {ticket.id: sum(task.ticket is ticket for task in batch) for ticket in {task.ticket for task in batch}}


def test_a_small_job_behind_a_sweep_is_in_the_next_batch(model: LoadedModel) -> None:
    scheduler, sweep, small = Scheduler(), JobTicket("sweep", "a"), JobTicket("small", "b")
    scheduler.add(task(model, sweep, order) for order in range(10_000))
    assert counts(scheduler.next_batch(100)) == {"sweep": 10}
    scheduler.add([task(model, small, 0)])
    assert counts(scheduler.next_batch(100)) == {"small": 1, "sweep": 9}


def test_a_small_job_of_another_kind_waits_for_one_batch_at_most(model: LoadedModel) -> None:
    scheduler, sweep, small = Scheduler(), JobTicket("sweep", "a"), JobTicket("small", "b")
    scheduler.add(task(model, sweep, order) for order in range(100))
    scheduler.add([task(model, small, 0, kind="b")])
    assert [counts(scheduler.next_batch(100)) for _ in range(3)] == [{"sweep": 10}, {"small": 1}, {"sweep": 10}]


def test_jobs_in_the_background_do_not_fill_up_the_batch_of_another(model: LoadedModel) -> None:
    scheduler, small = Scheduler(), JobTicket("small", "b")
    sweeps = [JobTicket(name, "a", background=True) for name in ("one", "other")]
    scheduler.add(task(model, sweep, order) for sweep in sweeps for order in range(20))
    assert counts(scheduler.next_batch(100)) == {"one": 5, "other": 5}
    scheduler.add([task(model, small, 0), task(model, small, 1)])
    assert counts(scheduler.next_batch(100)) == {"small": 2}
    assert counts(scheduler.next_batch(100)) == {"one": 5, "other": 5}


def test_where_the_background_leads_the_others_ride_along(model: LoadedModel) -> None:
    scheduler, small, sweep = Scheduler(), JobTicket("small", "b"), JobTicket("sweep", "a", background=True)
    scheduler.add(task(model, sweep, order) for order in range(20))
    scheduler.add([task(model, small, 0)])
    assert counts(scheduler.next_batch(100)) == {"sweep": 9, "small": 1}


def test_two_sweeps_share_every_batch_equally(model: LoadedModel) -> None:
    scheduler, one, other = Scheduler(), JobTicket("one", "a"), JobTicket("other", "b")
    scheduler.add(task(model, one, order) for order in range(20))
    scheduler.add(task(model, other, order) for order in range(10))
    assert [counts(batch) for batch in drained(scheduler, 100)] == [
        {"one": 5, "other": 5},
        {"one": 5, "other": 5},
        {"one": 10},
    ]


def test_a_row_larger_than_the_limit_runs_alone(model: LoadedModel) -> None:
    scheduler, job = Scheduler(), JobTicket("job", "a")
    scheduler.add([task(model, job, 0, tokens=500), task(model, job, 1), task(model, job, 2)])
    assert [len(batch) for batch in drained(scheduler, 100)] == [1, 2]


def test_a_job_runs_in_its_own_order_kind_after_kind(model: LoadedModel) -> None:
    scheduler, job = Scheduler(), JobTicket("job", "a")
    scheduler.add([task(model, job, order, kind="ab"[order % 2]) for order in (3, 0, 2, 1)])
    assert [[task.order[0] for task in batch] for batch in drained(scheduler, 100)] == [[0, 2], [1, 3]]


def test_removing_a_job_takes_all_its_rows_and_no_others(model: LoadedModel) -> None:
    scheduler, one, other = Scheduler(), JobTicket("one", "a"), JobTicket("other", "b")
    scheduler.add([task(model, one, 0), task(model, one, 1, kind="b"), task(model, other, 0)])
    assert len(scheduler.remove(one)) == 2
    assert scheduler.remove(one) == []
    assert scheduler.tickets() == (other,)
    assert len(scheduler) == 1


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.sampled_from("abc")), max_size=60),
    limit=st.integers(1, 200),
)
def test_every_row_runs_once_in_batches_of_one_kind_within_the_limit(
    model: LoadedModel, rows: list[tuple[int, int, str]], limit: int
) -> None:
    scheduler, jobs = Scheduler(), [JobTicket(str(index), "a") for index in range(4)]
    tasks: list[Any] = [
        task(model, jobs[job], order, tokens=tokens, kind=kind) for order, (job, tokens, kind) in enumerate(rows)
    ]
    scheduler.add(tasks)
    batches = drained(scheduler, limit)
    assert sorted(id(task) for batch in batches for task in batch) == sorted(map(id, tasks))
    for batch in batches:
        assert len({task.kind for task in batch}) == 1
        assert len(batch) == 1 or sum(task.tokens for task in batch) <= limit
