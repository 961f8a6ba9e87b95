"""What a worker counts."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from services.jobs.record import Ending
from services.metrics import new_registry


class WorkerMetrics:
    """The jobs that this worker ended and its engine's work; `running` says how many jobs run now."""

    def __init__(self, running: Callable[[], int]) -> None:
        self.registry = new_registry()
        self._ended = Counter(
            "lensd_jobs_ended", "Jobs that this worker ended.", ("kind", "status"), registry=self.registry
        )
        self._token_layers = Counter("lensd_token_layers", "Positions through blocks.", registry=self.registry)
        Gauge("lensd_running_jobs", "Jobs that run.", registry=self.registry).set_function(running)

    def note_work(self, token_layers: float) -> None:
        self._token_layers.inc(token_layers)

    def note_end(self, kind: str, ending: Ending) -> None:
        self._ended.labels(kind, type(ending).__name__.lower()).inc()
