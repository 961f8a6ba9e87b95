"""A job as the engine knows it: whose rows these are, how far they are, and what they have cost."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class JobCancelled(Exception):
    """The job was cancelled, or its deadline passed, before all its rows had run."""


def _ignore(_done: int, _planned: int) -> None:
    pass


class JobTicket:
    """One job's standing with the engine; shared by everything that submits rows for it.

    `owner` keeps one tenant's base runs out of another's sight. `cancelled` is polled before every batch. `on_progress`
    gets rows done and rows planned so far, on the engine's thread: it must return at once. `alone` keeps the job's rows
    out of batches with other jobs': a worker died over it before. `background` keeps its rows from filling up a batch
    that a job in the foreground leads.
    """

    def __init__(
        self,
        job_id: str,
        owner: str,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int, int], None] = _ignore,
        alone: bool = False,
        background: bool = False,
    ) -> None:
        self.alone = alone
        self.background = background
        self.entered = False
        """Whether it has been in the engine."""
        self.by_itself = False
        """Whether it has been there and works by itself now: puts its result together, say."""
        self.id = job_id
        self.owner = owner
        self._is_cancelled = cancelled
        self._stopped: Future[None] = Future()
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._done = 0
        self._planned = 0
        self._token_layers = 0.0
        self._seconds = 0.0

    def cancelled(self) -> bool:
        """Whether it was told to stop, or is otherwise cancelled; asked before every batch and between its blocks."""
        return self._stopped.done() or self._is_cancelled()

    def stop(self) -> None:
        """The job ends now: whoever waits for its rows goes on at once, though the batch that has them may run on."""
        with self._lock:
            if not self._stopped.done():
                self._stopped.set_result(None)

    def result_of(self, future: Future[T]) -> T:
        """Wait for a row of this job; raises what the row raises, and JobCancelled as soon as the job is stopped."""
        if not future.done():
            either: tuple[Future[Any], ...] = (future, self._stopped)
            wait(either, return_when=FIRST_COMPLETED)
            if not future.done():
                raise JobCancelled
        return future.result()

    @property
    def token_layers(self) -> int:
        """Engine work for this job, with all of the batch under way: positions through blocks; a row with gradients
        counts three times."""
        return round(self._token_layers)

    @property
    def engine_seconds(self) -> float:
        """Seconds of the engine's thread that this job has used: its share of every batch it was in."""
        return self._seconds

    @contextmanager
    def in_engine(self) -> Iterator[None]:
        """While the job waits for its rows."""
        self.entered, self.by_itself = True, False
        try:
            yield
        finally:
            self.by_itself = True

    def plan(self, rows: int) -> None:
        """Announce rows that are going to run."""
        with self._lock:
            self._planned += rows
            done, planned = self._done, self._planned
        self._on_progress(done, planned)

    def charge(self, *, rows: int, token_layers: float, seconds: float) -> None:
        """Book finished rows and what they cost; less than nothing is given back."""
        with self._lock:
            self._done += rows
            self._token_layers += token_layers
            self._seconds += seconds
            done, planned = self._done, self._planned
        self._on_progress(done, planned)
