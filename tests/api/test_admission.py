"""What is not let in, and how the answer says so: work, results and memory that would be too much."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from pydantic import TypeAdapter
from redis import Redis
from redis.exceptions import OutOfMemoryError

from api.app import create_app
from api.limits import RequestLimits
from services.adapters.redis_client import make_client
from services.adapters.redis_jobs import RedisJobStore
from services.adapters.redis_keys import RedisKeyStore
from services.adapters.redis_workers import RedisWorkers
from services.catalogue.catalogue import Catalogue
from services.catalogue.resolve import Limits, resolve
from services.contracts.job import JobSpec
from services.jobs.policy import JobPolicy
from services.jobs.ports import WorkerState
from services.jobs.record import Claim, Size
from services.tenants.keys import Scope, new_key
from tests.api.conftest import Stand
from tests.api.specs import PATCHING
from tests.services.adapters.valkey import valkey_server
from tests.services.jobs.samples import DONE

pytestmark = pytest.mark.anyio

MAXMEMORY = 24 * 2**20


def estimated(catalogue: Catalogue) -> tuple[int, int]:
    """Token-layers and bytes of result of the usual job."""
    spec: JobSpec = TypeAdapter(JobSpec).validate_json(json.dumps(PATCHING))
    cost = resolve(spec, catalogue, Limits()).cost
    return cost.token_layers, cost.output_bytes


@pytest.mark.parametrize("bound", ["token_layers", "output_bytes"])
async def test_a_job_over_a_bound_is_refused_with_its_estimate_and_one_at_the_bound_is_not(
    stand: Stand, bound: str
) -> None:
    estimate = dict(zip(("token_layers", "output_bytes"), estimated(stand.services.catalogue), strict=True))[bound]
    for allowed, status in ((estimate, 202), (estimate - 1, 422)):
        app = stand.app_with(limits=replace(Limits(), **{bound: allowed}))
        async with stand.client(stand.key("alice"), app) as client:
            answer = await client.post("/v1/jobs", json=PATCHING)
        assert answer.status_code == status
    problem = answer.json()
    assert problem["code"] == "job_too_large"
    assert str(estimate) in problem["errors"][0]["message"]


@dataclass
class Scarce:
    """A gateway on a real store with little memory."""

    client: httpx.AsyncClient
    store: RedisJobStore
    redis: Redis
    workers: RedisWorkers

    async def submit(self) -> httpx.Response:
        return await self.client.post("/v1/jobs", json=PATCHING)

    def claim(self) -> Claim:
        claim = self.store.claim("default", "w1", tuple(Size))
        assert claim is not None
        return claim


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Redis]:
    with valkey_server(tmp_path, maxmemory_bytes=MAXMEMORY) as server, make_client(server.url, patient=False) as redis:
        yield redis


@pytest.fixture
async def scarce(stand: Stand, small_store: Redis) -> AsyncIterator[Scarce]:
    store, keys, workers = (
        RedisJobStore(small_store, JobPolicy()),
        RedisKeyStore(small_store),
        RedisWorkers(small_store),
    )
    services = replace(stand.services, store=store, keys=keys, workers=workers)
    plaintext, key = new_key("alice", "test", tuple(Scope))
    keys.put(key)
    async with stand.client(plaintext, create_app(services, RequestLimits())) as client:
        yield Scarce(client, store, small_store, workers)


async def test_a_store_that_runs_out_of_memory_admits_nothing_and_ends_what_runs(scarce: Scarce) -> None:
    first = (await scarce.submit()).json()["id"]
    claim = scarce.claim()
    pad(scarce.redis, int(0.85 * MAXMEMORY))
    early = await scarce.submit()
    lower_the_bound(scarce.redis)
    late = await scarce.submit()
    for answer, code in ((early, "queue_full"), (late, "store_unavailable")):
        assert (answer.status_code, answer.json()["code"]) == (503, code)
        assert "memory" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
    scarce.workers.announce(WorkerState("w1", "default", {}), ttl_s=10)
    assert (await scarce.client.get("/readyz")).status_code == 200
    assert scarce.store.heartbeat([claim])[first].held
    assert scarce.store.finish(claim, DONE)
    ended = await scarce.client.get(f"/v1/jobs/{first}")
    assert ended.json()["status"] == "succeeded"


async def test_a_store_with_room_again_admits_again(scarce: Scarce) -> None:
    pad(scarce.redis, int(0.92 * MAXMEMORY))
    assert (await scarce.submit()).status_code == 503
    scarce.redis.delete("padding")
    while int(scarce.redis.info("memory")["used_memory"]) > 0.5 * MAXMEMORY:  # it is freed in the background
        await asyncio.sleep(0.01)
    assert (await scarce.submit()).status_code == 202


def pad(redis: Redis, nbytes: int) -> None:
    """Fill the store up to about `nbytes`."""
    while int(redis.info("memory")["used_memory"]) < nbytes:
        redis.rpush("padding", bytes(2**18))


def lower_the_bound(redis: Redis) -> None:
    """As if the store were full many times over: it then refuses every write that is not marked as one that must be."""
    redis.config_set("maxmemory", 2**20)
    with pytest.raises(OutOfMemoryError):
        redis.rpush("padding", b"x")
