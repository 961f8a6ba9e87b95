"""Batches that nobody waits for any more."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from services.contracts.site import SiteName
from services.engine.decoding import Continuation
from services.engine.engine import Engine, EngineLimits
from services.engine.giving_up import BatchGivenUp, give_up_if_unwanted, given_up_without
from services.engine.outcome import Outcome
from services.engine.row import Capture, Row, Site
from services.engine.ticket import JobCancelled, JobTicket
from services.models.load import LoadedModel
from tests.families import LAYERS
from tests.processes import eventually
from tests.services.engine.conftest import LoadTiny
from tests.services.engine.test_engine import TOKENS, Gate, sweep, watching

FIRST = Row((5, 6, 7), captures=(Capture(Site(SiteName.Z, 0)),))


@pytest.fixture
def model(load_tiny: LoadTiny) -> LoadedModel:
    return load_tiny("llama", torch.float32)


@contextmanager
def last_mlp(model: LoadedModel) -> Iterator[list[int]]:
    """How many lanes went through the last MLP, batch by batch."""
    lanes: list[int] = []

    def note(_module: Any, given: tuple[torch.Tensor, ...]) -> None:
        lanes.append(len(given[0]))

    handle = model.bridge.original_model.model.layers[-1].mlp.register_forward_pre_hook(note)
    try:
        yield lanes
    finally:
        handle.remove()


def test_a_batch_whose_jobs_are_all_cancelled_ends_between_two_blocks(model: LoadedModel) -> None:
    cancelled = threading.Event()
    with Engine(EngineLimits(threads=1)) as engine:
        engine.warm_up(model)
        with watching(model, lambda _: cancelled.set()), last_mlp(model) as lanes:
            job = JobTicket("job", "a", cancelled=cancelled.is_set)
            futures = engine.submit(model, sweep(), job=job)
            for future in futures:
                with pytest.raises(JobCancelled):
                    future.result(timeout=30)
        assert lanes == []
        assert job.token_layers > 0, "what was begun is paid"
        job = JobTicket("next", "a")
        again = [outcome.values() for outcome in engine.run(model, sweep(), job=job)]
    with Engine(EngineLimits(threads=1)) as fresh:
        want = [outcome.values() for outcome in fresh.run(model, sweep(), job=JobTicket("other", "b"))]
    for found, expected in zip(again, want, strict=True):
        torch.testing.assert_close(found, expected)


class Gates:
    """Hold the engine's thread in the batch of `FIRST` until jobs wait behind it, and then in theirs."""

    def __init__(self) -> None:
        self.first, self.shared = Gate(), Gate()

    def __call__(self, tokens: torch.Tensor) -> None:
        gate = self.first if len(tokens[0]) == len(FIRST.tokens) else self.shared
        gate(tokens)


@contextmanager
def in_one_batch(engine: Engine, model: LoadedModel, *jobs: JobTicket) -> Iterator[list[Future[list[Outcome]]]]:
    """Each job waits for the rows of a sweep; within the block their first batch is held."""
    gates = Gates()
    with ThreadPoolExecutor() as threads, watching(model, gates):
        try:
            first = threads.submit(engine.run, model, [FIRST], job=JobTicket("first", "c"))
            assert gates.first.reached.wait(10)
            waiting = [threads.submit(engine.run, model, sweep(), job=job) for job in jobs]
            assert eventually(lambda: engine.statistics().waiting_rows == len(jobs) * len(sweep()), 10)
            gates.first.open.set()
            assert gates.shared.reached.wait(10)
            yield waiting
        finally:
            gates.first.open.set()
            gates.shared.open.set()
        first.result(30)


def test_a_stopped_job_ends_at_once_though_its_batch_runs_on_for_another(model: LoadedModel) -> None:
    leaving, staying, lone = JobTicket("leaving", "a"), JobTicket("staying", "b"), JobTicket("lone", "b")
    with Engine(EngineLimits(threads=1)) as engine:
        engine.warm_up(model)
        with in_one_batch(engine, model, leaving, staying) as (leaves, stays):
            leaving.stop()
            with pytest.raises(JobCancelled):
                leaves.result(10)
            assert leaving.cancelled()
            assert not stays.done()
            bill = leaving.token_layers
            assert staying.token_layers == bill, "both pay for their rows of the batch before it has run"
        found = [outcome.values() for outcome in stays.result(30)]
        after = [outcome.values() for outcome in engine.run(model, sweep(), job=JobTicket("next", "a"))]
        assert engine.statistics().waiting_rows == 0
    with Engine(EngineLimits(threads=1)) as fresh:
        want = [outcome.values() for outcome in fresh.run(model, sweep(), job=lone)]
    for one, other, expected in zip(found, after, want, strict=True):
        torch.testing.assert_close(one, expected)
        torch.testing.assert_close(other, expected)
    base = 2 * len(TOKENS) * LAYERS
    assert 0 < bill < lone.token_layers
    assert lone.token_layers - base <= staying.token_layers <= lone.token_layers, "its bill is its own rows'"


def test_a_text_that_is_being_written_is_let_go_in_the_middle_of_a_step(model: LoadedModel) -> None:
    text = Continuation(TOKENS, 6)
    gate, job = Gate(), JobTicket("job", "a")
    with Engine(EngineLimits(threads=1)) as engine:
        engine.warm_up(model)
        with ThreadPoolExecutor() as threads, watching(model, gate):
            try:
                writing = threads.submit(engine.generate, model, [text], job=job)
                assert gate.reached.wait(10)
                job.stop()
                with pytest.raises(JobCancelled):
                    writing.result(10)
            finally:
                gate.open.set()
        (after,) = engine.generate(model, [text], job=JobTicket("next", "a"))
        assert engine.statistics().waiting_rows == 0
    with Engine(EngineLimits(threads=1)) as fresh:
        (want,) = fresh.generate(model, [text], job=JobTicket("other", "b"))
    assert after.tokens == want.tokens
    assert after.log_probs == pytest.approx(want.log_probs, abs=1e-4)


def test_a_batch_that_fails_is_paid_back_and_its_rows_pay_when_they_run(model: LoadedModel) -> None:
    def poisoned(tokens: torch.Tensor) -> None:
        if len(tokens) > 1:
            raise ArithmeticError("poisoned")

    rows = [Row((5 + index, *TOKENS), captures=(Capture(Site(SiteName.Z, LAYERS - 1)),)) for index in range(4)]
    with Engine(EngineLimits(threads=1)) as engine:
        engine.warm_up(model)
        ticket = JobTicket("job", "a")
        with watching(model, poisoned):
            engine.run(model, rows, job=ticket)
    assert ticket.token_layers == len(rows) * len(rows[0].tokens) * LAYERS


def test_nothing_of_a_stopped_job_is_held_longer_than_its_batch(model: LoadedModel) -> None:
    gate, job = Gate(), JobTicket("job", "a")
    with Engine(EngineLimits(threads=1)) as engine:
        engine.warm_up(model)
        with watching(model, gate):
            futures = engine.submit(model, sweep(), job=job)
            held = [weakref.ref(future) for future in futures]
            assert gate.reached.wait(10)
            job.stop()
            with pytest.raises(JobCancelled):
                job.result_of(futures[0])
            gate.open.set()
            del futures
        assert eventually(lambda: gc.collect() >= 0 and not any(future() for future in held), 10)


def test_a_row_that_was_done_before_its_job_was_stopped_is_told() -> None:
    job, done, waiting = JobTicket("job", "a"), Future[int](), Future[int]()
    done.set_result(7)
    job.stop()
    job.stop()
    assert job.result_of(done) == 7
    with pytest.raises(JobCancelled):
        job.result_of(waiting)


def test_a_batch_that_another_job_shares_runs_to_its_end() -> None:
    gone, staying = JobTicket("gone", "a", cancelled=lambda: True), JobTicket("staying", "b")
    with given_up_without([gone, staying]):
        give_up_if_unwanted()
    with given_up_without([gone]), pytest.raises(BatchGivenUp):
        give_up_if_unwanted()
    give_up_if_unwanted()
