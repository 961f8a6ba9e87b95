"""How a claimed job ends, whatever its method does."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.generation import NewTokens
from services.contracts.job import JobProgress, JobResult
from services.engine.ticket import JobCancelled
from services.jobs.memory import MemoryBlobs, MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import Beat, Cancelled, Claim, Ending, Failed, Size, Stop, Succeeded
from services.jobs.results import store_result
from tests.services.jobs.samples import new_job, patching_result
from worker.running import RunningJob

SECRET = "my private prompt"


@pytest.fixture
def claim() -> Claim:
    store = MemoryJobStore(JobPolicy())
    store.create(new_job(prompts=[SECRET]))
    claimed = store.claim("default", "worker", tuple(Size))
    assert claimed is not None
    return claimed


def keep(claim: Claim, result: JobResult) -> Succeeded:
    return Succeeded(store_result(MemoryBlobs(), claim.job.id, claim.attempt, result))


def raising(error: BaseException) -> Callable[[], JobResult]:
    def compute() -> JobResult:
        raise error

    return compute


def failure(ending: Ending | None) -> tuple[ErrorCode, str]:
    assert isinstance(ending, Failed)
    return ending.error.code, ending.error.message


def test_a_result_is_stored_before_the_job_is_said_to_have_succeeded(claim: Claim) -> None:
    ending = RunningJob(claim).work(lambda: patching_result([[1.0]], [[2.0]]), keep)
    assert isinstance(ending, Succeeded)
    assert ending.result.document is not None


def test_any_exception_of_a_method_ends_in_a_failure_with_a_name_for_the_log(
    claim: Claim, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        ending = RunningJob(claim).work(raising(ZeroDivisionError("division by zero")), keep)
    assert isinstance(ending, Failed)
    error = ending.error
    assert error.code is ErrorCode.METHOD_FAILED
    assert error.correlation_id is not None
    assert error.correlation_id in error.message
    assert "ZeroDivisionError" not in error.message
    assert "Traceback" not in error.message
    assert error.correlation_id in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert SECRET not in caplog.text


def test_a_failure_that_the_client_may_read_is_passed_on(claim: Claim) -> None:
    error = JobFailed(ErrorCode.OUT_OF_MEMORY, "one forward pass does not fit into memory")
    assert failure(RunningJob(claim).work(raising(error), keep)) == (error.code, error.message)


TOO_MANY = 2**60
"""Elements that no machine has room for."""


@pytest.mark.parametrize(
    "compute",
    [
        raising(MemoryError()),
        raising(torch.OutOfMemoryError("CUDA out of memory")),
        lambda: torch.empty(TOO_MANY),
        lambda: np.empty(2**46),
    ],
    ids=["python", "gpu", "torch", "numpy"],
)
def test_running_out_of_memory_says_what_to_do(
    claim: Claim, compute: Callable[[], JobResult], caplog: pytest.LogCaptureFixture
) -> None:
    code, message = failure(RunningJob(claim).work(compute, keep))
    assert code is ErrorCode.OUT_OF_MEMORY
    assert "smaller sweep" in message
    assert f"{claim.job.id} ran out of memory" in caplog.text


def test_running_out_of_memory_while_the_result_is_stored_is_no_other_failure(claim: Claim) -> None:
    def no_room(claim: Claim, result: JobResult) -> Succeeded:
        raise MemoryError

    ending = RunningJob(claim).work(lambda: patching_result([[1.0]], [[2.0]]), no_room)
    assert failure(ending)[0] is ErrorCode.OUT_OF_MEMORY


def test_another_runtime_error_of_torch_is_not_taken_for_want_of_memory(claim: Claim) -> None:
    def misfit() -> JobResult:
        torch.ones(2) @ torch.ones(3)
        raise AssertionError

    assert failure(RunningJob(claim).work(misfit, keep))[0] is ErrorCode.METHOD_FAILED


@pytest.mark.parametrize("stop", list(Stop))
def test_a_job_that_was_asked_to_stop_ends_as_it_was_asked(claim: Claim, stop: Stop) -> None:
    job = RunningJob(claim)
    assert not job.ticket.cancelled()
    job.hear(Beat(held=True, stop=stop))
    assert job.ticket.cancelled()
    ending = job.work(raising(JobCancelled()), keep)
    if stop is Stop.CANCELLED:
        assert isinstance(ending, Cancelled)
    else:
        assert failure(ending)[0] is ErrorCode.DEADLINE_EXCEEDED


def test_a_job_that_is_another_workers_by_now_ends_without_a_word(claim: Claim) -> None:
    job = RunningJob(claim)
    job.hear(Beat(held=False))
    assert job.ticket.cancelled()
    assert job.work(raising(JobCancelled()), keep) is None
    assert not job.handed_back


def test_a_drained_job_is_handed_back(claim: Claim) -> None:
    job = RunningJob(claim)
    job.hand_back()
    assert job.work(raising(JobCancelled()), keep) is None
    assert job.handed_back


@pytest.mark.parametrize(
    "order",
    [
        lambda job: job.hear(Beat(held=True, stop=Stop.CANCELLED)),
        lambda job: job.hear(Beat(held=True, stop=Stop.DEADLINE)),
        lambda job: job.hear(Beat(held=False)),
        RunningJob.hand_back,
    ],
)
def test_a_job_that_is_told_to_stop_waits_for_its_rows_no_longer(
    claim: Claim, order: Callable[[RunningJob], None]
) -> None:
    job, row = RunningJob(claim), Future[None]()
    with ThreadPoolExecutor() as threads:
        job.hear(Beat(held=True))
        waiting = threads.submit(job.ticket.result_of, row)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        order(job)
        with pytest.raises(JobCancelled):
            waiting.result(10)


def test_tokens_stay_fresh_until_somebody_was_told(claim: Claim) -> None:
    job = RunningJob(claim)
    one, two, three = (
        NewTokens(prompt=0, strength=None, first=number, tokens=(number,), strings=("a",), log_probs=(-1.0,))
        for number in range(3)
    )
    assert job.fresh_tokens() == ()
    job.note_token(one)
    job.note_token(two)
    (fresh,) = job.fresh_tokens()
    job.note_token(three)
    assert fresh.tokens == (0, 1)
    job.told([fresh])
    assert job.fresh_tokens() == (three,)


def test_progress_is_fresh_once(claim: Claim) -> None:
    job = RunningJob(claim)
    assert job.fresh_progress() is None
    job.ticket.plan(3)
    job.ticket.charge(rows=1, token_layers=9.0, seconds=0.1)
    assert job.fresh_progress() == JobProgress(done=1, planned=3)
    assert job.fresh_progress() is None
