"""The engine's door: hand it rows or continuations, get futures.

One thread per device owns the models and everything that touches them or autograd. Methods run in threads of their own
and never see a hook, a batch or a pad token.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType

import torch

from services.contracts.errors import ErrorCode, JobFailed
from services.engine.check import check_row
from services.engine.decoder import Decoding
from services.engine.decoding import Continuation, Generated, OnToken
from services.engine.decoding_check import check_continuation
from services.engine.executor import Executor, Ran
from services.engine.needs import Needs
from services.engine.outcome import Execution, Outcome
from services.engine.past import PastBudget
from services.engine.planner import plan
from services.engine.readout import TokenLogits
from services.engine.row import Row
from services.engine.scheduler import Scheduler, Task
from services.engine.statistics import EngineStatistics
from services.engine.ticket import JobCancelled, JobTicket
from services.models.load import LoadedModel


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one batch and of what is kept between batches.

    `batch_tokens` counts padding; `gradient_batch_tokens` does for rows with gradients, whose every activation is kept
    until the backward pass. `past_bytes` are for the keys and values of continuations under way: one that finds no room
    waits for others of its job, or runs all its positions at every step. `threads` is torch's intra-op thread count.
    """

    batch_tokens: int = 512
    gradient_batch_tokens: int = 256
    base_run_bytes: int = 512 * 2**20
    past_bytes: int = 512 * 2**20
    threads: int = 2


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
        self._batch_tokens = self._limits.batch_tokens
        self._gradient_batch_tokens = self._limits.gradient_batch_tokens
        self._scheduler = Scheduler()
        self._executor = Executor(base_run_bytes=self._limits.base_run_bytes)
        self._pasts = PastBudget(self._limits.past_bytes)
        self._wake = threading.Condition()
        self._closed = False
        self._running: frozenset[str] = frozenset()
        self._done = EngineStatistics()
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
        """Submit `rows` and wait for all of them; the first failure is raised."""
        return [future.result() for future in self.submit(model, rows, job=job)]

    def generate(self, model: LoadedModel, continuations: Sequence[Continuation], *, job: JobTicket) -> list[Generated]:
        """Submit `continuations` and wait for all of them; the first failure is raised."""
        return [future.result() for future in self.submit_continuations(model, continuations, job=job)]

    def warm_up(self, model: LoadedModel) -> Execution:
        """Try the model out now, as its first row otherwise would; says how its rows are going to run."""
        (outcome,) = self.run(model, [Row((0,), readout=TokenLogits(0, (0,)))], job=JobTicket("warm-up", owner=""))
        return outcome.execution

    def statistics(self) -> EngineStatistics:
        """Counters since the start, and what waits now."""
        with self._wake:
            waiting_rows, waiting_jobs = len(self._scheduler), len(self._scheduler.tickets())
        cache = self._executor.base_runs
        return replace(
            self._done,
            waiting_rows=waiting_rows,
            waiting_jobs=waiting_jobs,
            base_run_hits=cache.counters.hits,
            base_run_misses=cache.counters.misses,
            base_run_evictions=cache.counters.evictions,
            base_run_bytes=cache.nbytes,
        )

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
            while batch := self._next_batch():
                self._announce(frozenset(task.ticket.id for task in batch))
                self._run_batch(batch)
                with self._wake:
                    idle = not self._scheduler
                if idle:
                    self._announce(frozenset())
        finally:  # nobody may wait for a thread that is gone
            with self._wake:
                self._closed = True
                for ticket in self._scheduler.tickets():
                    _fail(self._scheduler.remove(ticket), EngineClosed())

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
                        _fail(self._scheduler.remove(ticket), JobCancelled())
                batch = self._scheduler.next_batch(self._batch_tokens, gradients=self._gradient_batch_tokens)
                if batch:
                    return batch
                self._wake.wait()
        return []

    def _run_batch(self, batch: Sequence[Task]) -> None:
        started = time.perf_counter()
        try:
            ran = self._execute(batch)
        except Exception as error:  # whatever a row raises belongs to its own job alone
            failure = error
        else:
            seconds = time.perf_counter() - started
            self._count(batch, seconds)
            _charge(batch, ran.base_tokens, seconds)
            for task, outcome in zip(batch, ran.outcomes, strict=True):
                task.future.set_result(outcome)
            return
        if _is_out_of_memory(failure):
            failure.__traceback__ = None  # its frames hold the tensors that did not fit
        self._recover(batch, failure)

    def _execute(self, batch: Sequence[Task]) -> Ran:
        foreseen = _together({id(task.foreseen): task.foreseen for task in batch}.values())
        lanes = [task.lane for task in batch]
        limit = self._gradient_batch_tokens if _has_gradients(batch) else self._batch_tokens
        return self._executor.run(batch[0].model, lanes, foreseen, batch_tokens=limit)

    def _count(self, batch: Sequence[Task], seconds: float) -> None:
        tokens = sum(task.tokens for task in batch)
        self._done = replace(
            self._done,
            batches=self._done.batches + 1,
            rows=self._done.rows + len(batch),
            tokens=self._done.tokens + tokens,
            padding=self._done.padding + len(batch) * max(task.tokens for task in batch) - tokens,
            seconds=self._done.seconds + seconds,
        )

    def _recover(self, batch: Sequence[Task], error: Exception) -> None:
        """Halve what ran out of memory; else find the guilty row by running each alone."""
        out_of_memory = _is_out_of_memory(error)
        if len(batch) > 1:
            if out_of_memory:
                self._halve(gradients=_has_gradients(batch))
            half = len(batch) // 2 if out_of_memory else 1
            for start in range(0, len(batch), half):
                self._run_batch(batch[start : start + half])
        else:
            self._done = replace(self._done, failed_rows=self._done.failed_rows + 1)
            _fail(batch, _too_large(batch[0]) if out_of_memory else error)

    def _halve(self, *, gradients: bool) -> None:
        if gradients:
            self._gradient_batch_tokens = max(1, self._gradient_batch_tokens // 2)
        else:
            self._batch_tokens = max(1, self._batch_tokens // 2)


def _charge(batch: Sequence[Task], base_tokens: int, seconds: float) -> None:
    """Every job pays its rows and, in proportion, what the batch took besides."""
    total = sum(task.cost for task in batch)
    jobs: dict[JobTicket, list[Task]] = defaultdict(list)
    for task in batch:
        jobs[task.ticket].append(task)
    for ticket, tasks in jobs.items():
        cost = sum(task.cost for task in tasks)
        base = base_tokens * tasks[0].model.facts.layers * cost / total
        ticket.charge(rows=len(tasks), token_layers=cost + base, seconds=seconds * cost / total)


def _together(several: Iterable[Needs]) -> Needs:
    needs: Needs = {}
    for some in several:
        for key, more in some.items():
            needs[key] = needs[key].joined(more) if key in needs else more
    return needs


def _fail(tasks: Iterable[Task], error: Exception) -> None:
    for task in tasks:
        task.future.set_exception(error)


def _has_gradients(batch: Sequence[Task]) -> bool:
    """Of all rows or none: the scheduler never mixes them."""
    return batch[0].lane.row.gradients is not None


def _too_large(task: Task) -> JobFailed:
    passes = "one forward pass" if task.lane.row.gradients is None else "one forward and backward pass"
    message = f"{passes} over {len(task.lane.row.tokens)} tokens does not fit into memory: send shorter prompts"
    return JobFailed(ErrorCode.OUT_OF_MEMORY, message)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
