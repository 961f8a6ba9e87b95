"""What Prometheus reads of the gateway."""

import httpx
import pytest

from api.app import create_app
from api.limits import RequestLimits
from api.metrics import GatewayMetrics
from services.adapters.embedded_valkey import free_port
from services.contracts.errors import ErrorCode, Unavailable
from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.ports import WorkerState
from services.metrics import listening
from tests.api.conftest import POOL, WORKER, Stand
from tests.api.specs import PATCHING

pytestmark = pytest.mark.anyio


class LostStore(MemoryJobStore):
    def depth(self, pool: str) -> int:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer")


@pytest.fixture
def metrics(stand: Stand) -> GatewayMetrics:
    return GatewayMetrics(stand.store, stand.workers, POOL)


def figure(metrics: GatewayMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_requests_are_counted_by_route_and_status_and_never_by_what_a_client_makes_up(
    stand: Stand, metrics: GatewayMetrics
) -> None:
    app = create_app(stand.services, RequestLimits(), observe=metrics.note)
    async with stand.client(stand.key("alice"), app) as client:
        first = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
        for name in (first, "job_absent"):
            await client.get(f"/v1/jobs/{name}")
        await client.request("MADEUP", "/made-up")
    route = {"method": "GET", "route": "/v1/jobs/{job_id}"}
    assert figure(metrics, "lensd_requests_total", **route, status="200") == 1
    assert figure(metrics, "lensd_requests_total", **route, status="404") == 1
    assert figure(metrics, "lensd_request_seconds_count", **route) == 2
    assert figure(metrics, "lensd_requests_total", method="POST", route="/v1/jobs", status="202") == 1
    assert figure(metrics, "lensd_requests_total", method="other", route="none", status="404") == 1


async def test_the_queue_and_its_workers_are_read_at_each_scrape(stand: Stand, metrics: GatewayMetrics) -> None:
    async with stand.client(stand.key("alice")) as client:
        await client.post("/v1/jobs", json=PATCHING)
    stand.workers.announce(WorkerState(WORKER, POOL, {}), ttl_s=10)
    assert figure(metrics, "lensd_queued_jobs", pool=POOL) == 1
    assert figure(metrics, "lensd_workers", pool=POOL) == 1
    stand.claim()
    assert figure(metrics, "lensd_queued_jobs", pool=POOL) == 0
    assert figure(metrics, "lensd_store_up") == 1


async def test_a_store_that_does_not_answer_is_a_figure_too(stand: Stand) -> None:
    metrics = GatewayMetrics(LostStore(JobPolicy()), stand.workers, POOL)
    assert figure(metrics, "lensd_store_up") == 0
    assert figure(metrics, "lensd_queued_jobs", pool=POOL) is None


async def test_the_figures_are_served_at_a_port_of_their_own_and_only_while_asked(metrics: GatewayMetrics) -> None:
    port = free_port()
    async with httpx.AsyncClient(trust_env=False) as client:
        with listening(metrics.registry, "127.0.0.1", port):
            text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/metrics")
    assert "lensd_store_up 1.0" in text
    assert "process_resident_memory_bytes" in text


async def test_the_api_itself_has_no_such_route(stand: Stand) -> None:
    async with stand.client(stand.key("alice")) as client:
        assert (await client.get("/metrics")).status_code == 404
