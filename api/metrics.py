"""What the gateway counts, and what it asks of the store when it is scraped."""

from collections.abc import Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.contracts.errors import LensdError
from services.jobs.ports import JobStore, WorkerRegistry
from services.metrics import new_registry

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """`lensd_requests_total` and `lensd_request_seconds` by route, as OpenAPI writes it, beside the store's figures."""

    def __init__(self, store: JobStore, workers: WorkerRegistry, pool: str) -> None:
        self.registry = new_registry()
        self.registry.register(_StoreCollector(store, workers, pool))
        self._requests = Counter(
            "lensd_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "lensd_request_seconds",
            "From a request's head to the end of its answer, waiting included.",
            ("method", "route"),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )

    def note(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request. Without a route its method may be any word of the client's: neither becomes a label."""
        method, route = (method, route) if route is not None else ("other", "none")
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)


class _StoreCollector(Collector):
    def __init__(self, store: JobStore, workers: WorkerRegistry, pool: str) -> None:
        self._store = store
        self._workers = workers
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("lensd_store_up", "Whether the job store answers.")
        try:
            depth = self._store.depth(self._pool)
            alive = sum(state.pool == self._pool for state in self._workers.alive())
        except LensdError:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        for name, what, value in (
            ("lensd_queued_jobs", "Jobs that wait for a worker.", depth),
            ("lensd_workers", "Workers whose heartbeat is fresh.", alive),
        ):
            family = GaugeMetricFamily(name, what, labels=("pool",))
            family.add_metric((self._pool,), value)
            yield family
