"""The result cache: a question that was answered before, by the same computation, is answered with that result.

1. A question is what a specification asks for, its inputs as they were tokenised, and who asks.
2. A fingerprint is all else that decides the numbers and is known before they are computed: what the workers of the
   pool say of themselves, if they all say the same, and the facts of the model and the SAE.
3. A job carries the name of its entry, made of both. When it succeeds, and what ran it had that very fingerprint, the
   entry leads to the job; it dies with the job.
4. A job that finds its entry gets a copy of the result, and has ended when it is made.
"""

import hashlib
import math
import time
from collections.abc import Callable
from typing import Protocol

import orjson

from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts
from services.jobs.ports import WorkerRegistry
from services.jobs.record import Idempotency, JobRecord, NewJob, StoredResult

_ASKS_NOTHING = {"label", "metadata", "priority", "deadline_s", "cache", "webhook"}
_OF_NO_WEIGHT_IN_MODELS = {"name", "license", "token_layers_per_second"}
_OF_NO_WEIGHT_IN_SAES = {"license", "index", "card"}


class ResultCache(Protocol):
    """Which job answers which question; entries are made and dropped by the job store as jobs end and are forgotten."""

    def find(self, job: NewJob, idempotency: Idempotency | None = None) -> JobRecord | None:
        """The job whose result answers `job`, by `job.ties.cache_entry`; raises Unavailable.

        None as well when `job` is there already, or its idempotency key is taken: `JobStore.create` knows what to do.
        None, too, when the owner has `JobPolicy.max_answers` answered jobs or may keep no more of any kind, or when the
        store is short of memory.
        For some minutes the sweep spares blobs of `job.id`: the result may be copied before the record exists.
        """

    def answer(
        self, job: NewJob, source: JobRecord, result: StoredResult, idempotency: Idempotency | None = None
    ) -> JobRecord | None:
        """Store `job` as one that has succeeded with `result`, a copy of the result of `source`, which `find` gave.

        It is charged nothing and counts for none of its owner's limits. None when the entry leads to `source` no more,
        or the copying took too long: the job is to run. With an idempotency key that was taken meanwhile, as
        `JobStore.create`: the earlier job, or Conflict. Repeating a call is harmless.
        """


def entry_name(question: str, fingerprint: str) -> str:
    """What the job store takes apart again to compare fingerprints."""
    return f"{question}:{fingerprint}"


def question(job: NewJob, *, shared: bool) -> str:
    """The digest of what is asked; of each owner's own unless results are `shared` among all."""
    return _digest(
        [
            None if shared else job.owner,
            job.spec.model_dump(mode="json", exclude=_ASKS_NOTHING),
            job.inputs.model_dump(mode="json"),
        ]
    )


def fingerprint(runner: str, model: ModelFacts, sae: SaeFacts | None) -> str:
    """The digest of what computes: `runner` is what a worker says of itself."""
    return _digest(
        [
            runner,
            model.model_dump(mode="json", exclude=_OF_NO_WEIGHT_IN_MODELS),
            sae and sae.model_dump(mode="json", exclude=_OF_NO_WEIGHT_IN_SAES),
        ]
    )


class PoolRunner:
    """What all workers of a pool say of themselves, asked again when `kept_s` have passed.

    An answer that is as old does no harm: what a job was computed with is compared again when it ends.
    """

    def __init__(
        self, workers: WorkerRegistry, pool: str, kept_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers = workers
        self._pool = pool
        self._kept_s = kept_s
        self._clock = clock
        self._heard: tuple[float, str | None] = (-math.inf, None)

    def said(self) -> str | None:
        """None when no worker of the pool lives, or they do not say the same. Raises Unavailable."""
        now, (heard_at, said) = self._clock(), self._heard
        if now - heard_at >= self._kept_s:
            runners = {worker.runner for worker in self._workers.alive() if worker.pool == self._pool}
            said = runners.pop() if len(runners) == 1 else None
            self._heard = now, said
        return said


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()
