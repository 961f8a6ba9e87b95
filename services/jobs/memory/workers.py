"""Who is alive, by a clock that tests may set."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from services.jobs.ports import WorkerState


class MemoryWorkers:
    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._states: dict[str, tuple[WorkerState, datetime]] = {}

    def announce(self, state: WorkerState, ttl_s: float) -> None:
        self._states[state.worker] = (state, self._clock() + timedelta(seconds=ttl_s))

    def retire(self, worker: str) -> None:
        self._states.pop(worker, None)

    def alive(self) -> Sequence[WorkerState]:
        now = self._clock()
        return [state for _, (state, until) in sorted(self._states.items()) if until > now]
