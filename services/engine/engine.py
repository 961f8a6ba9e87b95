"""The engine's door: hand it rows or continuations, get futures.

One thread per device owns the models and everything that touches them or autograd. Methods run in threads of their own
and never see a hook, a batch or a pad token.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType

import torch

from services.engine.batch import BatchCrew
from services.engine.check import check_row
from services.engine.decoder import Decoding
from services.engine.decoding import Continuation, Generated, OnToken
from services.engine.decoding_check import check_continuation
from services.engine.limits import EngineLimits
from services.engine.outcome import Execution, Outcome
from services.engine.past import PastBudget
from services.engine.planner import plan
from services.engine.readout import TokenLogits
from services.engine.row import Row
from services.engine.scheduler import Scheduler, Task
from services.engine.statistics import EngineStatistics
from services.engine.ticket import JobCancelled, JobTicket
from services.models.load import LoadedModel

__all__ = ["Engine", "EngineClosed", "EngineLimits"]


def _ignore(_jobs: frozenset[str]) -> None:
    pass


def _unheard(_index: int, _token: int, _log_prob: float) -> None:
    pass


class EngineClosed(JobCancelled):
    """The engine was closed before the row had run."""


class Engine:
    """Runs rows of any number of jobs on any number of models, on one thread."""

    def __init__(
        self, limits: EngineLimits | None = None, *, on_batch: Callable[[frozenset[str]], None] = _ignore
    ) -> None:
        """`on_batch` hears, on the engine's thread, of the jobs in the next batch when they change; none when idle."""
        self._limits = limits or EngineLimits()
        self._scheduler = Scheduler()
        self._crew = BatchCrew(self._limits)
        self._pasts = PastBudget(self._limits.past_bytes)
        self._wake = threading.Condition()
        self._closed = False
        self._running: frozenset[str] = frozenset()
        self._on_batch = on_batch
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, model: LoadedModel, rows: Sequence[Row], *, job: JobTicket) -> list[Future[Outcome]]:
        """Queue `rows` behind nobody's sweep: jobs take turns. Returns at once, one future per row.

        A future raises JobCancelled once the job is cancelled, JobFailed with `out_of_memory` for a row that does not
        fit even alone, or whatever else its own row raised.

        Raises:
            InvalidRow: a row that this model cannot run; none of the rows is queued.
        """
        for row in rows:
            check_row(model.facts, row)
        tasks = plan(model, rows, job)
        job.plan(len(tasks))
        self._queue(tasks)
        return [task.future for task in tasks]

    def submit_continuations(
        self,
        model: LoadedModel,
        continuations: Sequence[Continuation],
        *,
        job: JobTicket,
        on_token: OnToken = _unheard,
    ) -> list[Future[Generated]]:
        """Queue `continuations`, each of which takes its turn once per new token; one future each, failing as a row's.

        For progress and cost every new token is a row.

        Raises:
            InvalidRow: a continuation that this model cannot run; none of them is queued.
        """
        for continuation in continuations:
            check_continuation(model.facts, continuation)
        decodings = [
            Decoding(model, continuation, job, index, budget=self._pasts, queue=self._queue, on_token=on_token)
            for index, continuation in enumerate(continuations)
        ]
        job.plan(sum(decoding.steps for decoding in decodings))
        self._queue([decoding.next_step() for decoding in decodings])
        return [decoding.future for decoding in decodings]

    def run(self, model: LoadedModel, rows: Sequence[Row], *, job: JobTicket) -> list[Outcome]:
        """Submit `rows` and wait for all of them; the first failure is raised, JobCancelled once `job` is stopped."""
        return [job.result_of(future) for future in self.submit(model, rows, job=job)]

    def generate(self, model: LoadedModel, continuations: Sequence[Continuation], *, job: JobTicket) -> list[Generated]:
        """Submit `continuations` and wait for all of them; the first failure is raised."""
        return [job.result_of(future) for future in self.submit_continuations(model, continuations, job=job)]

    def warm_up(self, model: LoadedModel) -> Execution:
        """Try the model out now, as its first row otherwise would; says how its rows are going to run."""
        (outcome,) = self.run(model, [Row((0,), readout=TokenLogits(0, (0,)))], job=JobTicket("warm-up", owner=""))
        return outcome.execution

    def statistics(self) -> EngineStatistics:
        """Counters since the start, and what waits now."""
        with self._wake:
            waiting_rows, waiting_jobs = len(self._scheduler), len(self._scheduler.tickets())
        return replace(self._crew.statistics(), waiting_rows=waiting_rows, waiting_jobs=waiting_jobs)

    def close(self) -> None:
        """Finish the batch that is running, give up what waits, end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _queue(self, tasks: Sequence[Task]) -> None:
        with self._wake:
            if self._closed:
                raise EngineClosed
            self._scheduler.add(tasks)
            self._wake.notify()

    def _loop(self) -> None:
        torch.set_num_threads(self._limits.threads)
        try:
            while self._run_next():
                pass
        finally:  # nobody may wait for a thread that is gone
            with self._wake:
                self._closed = True
                for ticket in self._scheduler.tickets():
                    _give_up(self._scheduler.remove(ticket), EngineClosed())

    def _run_next(self) -> bool:
        """Run a batch, of which nothing is held afterwards; False once the engine is closed."""
        batch = self._next_batch()
        if not batch:
            return False
        self._announce(frozenset(task.ticket.id for task in batch))
        self._crew.run([task for task in batch if task.future.set_running_or_notify_cancel()])
        with self._wake:
            idle = not self._scheduler
        if idle:
            self._announce(frozenset())
        return True

    def _announce(self, jobs: frozenset[str]) -> None:
        if jobs != self._running:
            self._running = jobs
            self._on_batch(jobs)

    def _next_batch(self) -> list[Task]:
        """Wait for rows; empty once the engine is closed."""
        with self._wake:
            while not self._closed:
                for ticket in self._scheduler.tickets():
                    if ticket.cancelled():
                        _give_up(self._scheduler.remove(ticket), JobCancelled())
                batch = self._scheduler.next_batch(self._crew.batch_tokens, gradients=self._crew.gradient_batch_tokens)
                if batch:
                    return batch
                self._wake.wait()
        return []


def _give_up(waiting: Iterable[Task], error: Exception) -> None:
    for task in waiting:
        if task.future.set_running_or_notify_cancel():
            task.future.set_exception(error)
