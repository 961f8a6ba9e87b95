"""Batches that nobody waits for any more."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from services.engine.engine import Engine, EngineLimits
from services.engine.giving_up import BatchGivenUp, give_up_if_unwanted, given_up_without
from services.engine.ticket import JobCancelled, JobTicket
from services.models.load import LoadedModel
from tests.services.engine.conftest import LoadTiny
from tests.services.engine.test_engine import sweep, watching


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


def test_a_batch_that_another_job_shares_runs_to_its_end() -> None:
    gone, staying = JobTicket("gone", "a", cancelled=lambda: True), JobTicket("staying", "b")
    with given_up_without([gone, staying]):
        give_up_if_unwanted()
    with given_up_without([gone]), pytest.raises(BatchGivenUp):
        give_up_if_unwanted()
    give_up_if_unwanted()
