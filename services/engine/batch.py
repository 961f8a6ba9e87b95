"""Running one batch to its end: every task's future is fulfilled, and its job pays.

A job pays for its rows before they run, and gets back what they did not cost: one that is stopped meanwhile ends at
once, and its bill has the batch that runs on without it.

A batch that runs out of memory is halved, and so are all later ones. Any other failure has the rows run one by one, and
only the guilty one fails.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from services.contracts.errors import ErrorCode, JobFailed
from services.engine.executor import Executor, Ran
from services.engine.giving_up import BatchGivenUp, given_up_without
from services.engine.limits import EngineLimits
from services.engine.memory import is_out_of_memory
from services.engine.needs import Needs
from services.engine.scheduler import Task
from services.engine.statistics import EngineStatistics
from services.engine.ticket import JobCancelled, JobTicket


class BatchCrew:
    """Runs batches on the engine's thread. `batch_tokens` and `gradient_batch_tokens` shrink when memory runs out."""

    def __init__(self, limits: EngineLimits) -> None:
        self.batch_tokens = limits.batch_tokens
        self.gradient_batch_tokens = limits.gradient_batch_tokens
        self._executor = Executor(base_run_bytes=limits.base_run_bytes)
        self._done = EngineStatistics()

    def statistics(self) -> EngineStatistics:
        """Counters since the start."""
        cache = self._executor.base_runs
        return replace(
            self._done,
            base_run_hits=cache.counters.hits,
            base_run_misses=cache.counters.misses,
            base_run_evictions=cache.counters.evictions,
            base_run_bytes=cache.nbytes,
        )

    def run(self, batch: Sequence[Task]) -> None:
        """Run tasks of one kind and fulfil their futures, whatever happens."""
        if not batch:
            return
        started = time.perf_counter()
        prices = _prices(batch)
        for ticket, price in prices.items():
            ticket.charge(rows=0, token_layers=price, seconds=0.0)
        try:
            with given_up_without(list(prices)):
                ran = self._execute(batch)
        except BatchGivenUp:
            # It stays paid as one that ran: else cancelling in time would be work for nothing.
            _share_time(batch, time.perf_counter() - started)
            _fail(batch, JobCancelled())
            return
        except Exception as error:  # whatever a row raises belongs to its own job alone
            failure = error
        else:
            seconds = time.perf_counter() - started
            self._count(batch, ran, seconds)
            _settle(batch, ran, seconds, prices)
            for task, outcome in zip(batch, ran.outcomes, strict=True):
                task.future.set_result(outcome)
            return
        for ticket, price in prices.items():
            ticket.charge(rows=0, token_layers=-price, seconds=0.0)
        if is_out_of_memory(failure):
            failure.__traceback__ = None  # its frames hold the tensors that did not fit
        self._recover(batch, failure)

    def _execute(self, batch: Sequence[Task]) -> Ran:
        foreseen = _together({id(task.foreseen): task.foreseen for task in batch}.values())
        lanes = [task.lane for task in batch]
        limit = self.gradient_batch_tokens if _has_gradients(batch) else self.batch_tokens
        return self._executor.run(batch[0].model, lanes, foreseen, batch_tokens=limit)

    def _count(self, batch: Sequence[Task], ran: Ran, seconds: float) -> None:
        lengths = [task.tokens for task, known in zip(batch, ran.known, strict=True) if not known]
        tokens = sum(lengths)
        self._done = replace(
            self._done,
            batches=self._done.batches + 1,
            rows=self._done.rows + len(batch),
            tokens=self._done.tokens + tokens,
            padding=self._done.padding + len(lengths) * max(lengths, default=0) - tokens,
            seconds=self._done.seconds + seconds,
        )

    def _recover(self, batch: Sequence[Task], error: Exception) -> None:
        """Halve what ran out of memory; else find the guilty row by running each alone."""
        out_of_memory = is_out_of_memory(error)
        if len(batch) > 1:
            if out_of_memory:
                self._halve(gradients=_has_gradients(batch))
            half = len(batch) // 2 if out_of_memory else 1
            for start in range(0, len(batch), half):
                self.run(batch[start : start + half])
        else:
            self._done = replace(self._done, failed_rows=self._done.failed_rows + 1)
            _fail(batch, _too_large(batch[0]) if out_of_memory else error)

    def _halve(self, *, gradients: bool) -> None:
        if gradients:
            self.gradient_batch_tokens = max(1, self.gradient_batch_tokens // 2)
        else:
            self.batch_tokens = max(1, self.batch_tokens // 2)


def _prices(batch: Sequence[Task]) -> dict[JobTicket, float]:
    """What each job's rows cost if all of them run."""
    prices: dict[JobTicket, float] = defaultdict(float)
    for task in batch:
        prices[task.ticket] += task.cost
    return prices


def _settle(batch: Sequence[Task], ran: Ran, seconds: float, paid: Mapping[JobTicket, float]) -> None:
    """Every job pays its rows, but for those whose outcome was known, and in proportion what the batch took besides."""
    total = sum(task.cost for task, known in zip(batch, ran.known, strict=True) if not known)
    jobs: dict[JobTicket, list[int]] = defaultdict(list)
    for task, known in zip(batch, ran.known, strict=True):
        jobs[task.ticket].append(0 if known else task.cost)
    for ticket, costs in jobs.items():
        cost = sum(costs)
        share = cost / total if total else len(costs) / len(batch)
        base = ran.base_tokens * batch[0].model.facts.layers * share
        ticket.charge(rows=len(costs), token_layers=cost + base - paid[ticket], seconds=seconds * share)


def _share_time(batch: Sequence[Task], seconds: float) -> None:
    for task in batch:
        task.ticket.charge(rows=0, token_layers=0.0, seconds=seconds / len(batch))


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
