"""The same request under the same `Idempotency-Key` makes one job."""

import asyncio
import json

import httpx
import pytest

from services.jobs.record import StoredResult
from tests.api.conftest import POOL, Stand
from tests.api.specs import ATTRIBUTION, PATCHING, patching_result

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "run-7"}


async def test_the_same_request_again_finds_its_job(stand: Stand, client: httpx.AsyncClient) -> None:
    first = await client.post("/v1/jobs", json=PATCHING, headers=KEY)
    again = await client.post("/v1/jobs", json=PATCHING, headers=KEY)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert stand.store.depth(POOL) == 1
    assert stand.doorbell.waiting(POOL) == 1
    stand.succeed(stand.claim(), StoredResult(document=patching_result().model_dump_json()))
    ended = await client.post("/v1/jobs", json=PATCHING, headers=KEY)
    assert (ended.status_code, ended.json()["status"]) == (200, "succeeded")


async def test_neither_the_order_of_fields_nor_a_default_makes_it_another_request(client: httpx.AsyncClient) -> None:
    first = await client.post("/v1/jobs", json=PATCHING, headers=KEY)
    turned = json.dumps(dict(reversed(PATCHING.items())) | {"cache": True, "label": None}, indent=2)
    again = await client.post("/v1/jobs", content=turned, headers=KEY | {"Content-Type": "application/json"})
    assert again.json()["id"] == first.json()["id"]


async def test_another_request_under_the_same_key_is_refused(stand: Stand, client: httpx.AsyncClient) -> None:
    await client.post("/v1/jobs", json=PATCHING, headers=KEY)
    for other in (ATTRIBUTION, PATCHING | {"label": "other"}):
        refused = await client.post("/v1/jobs", json=other, headers=KEY)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
        assert "use a fresh key" in refused.json()["detail"]
    assert stand.store.depth(POOL) == 1


async def test_the_keys_of_two_tenants_never_meet(stand: Stand, client: httpx.AsyncClient) -> None:
    mine = await client.post("/v1/jobs", json=PATCHING, headers=KEY)
    async with stand.client(stand.key("bob")) as bob:
        his = await bob.post("/v1/jobs", json=ATTRIBUTION, headers=KEY)
    assert his.status_code == 202
    assert his.json()["id"] != mine.json()["id"]
    assert "idempotency-replayed" not in his.headers


async def test_twenty_posts_at_once_make_one_job(stand: Stand, client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=PATCHING, headers=KEY) for _ in range(20)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert stand.store.depth(POOL) == 1


async def test_a_forgotten_job_frees_its_key(client: httpx.AsyncClient) -> None:
    job = (await client.post("/v1/jobs", json=PATCHING, headers=KEY)).json()["id"]
    await client.post(f"/v1/jobs/{job}/cancel")
    await client.delete(f"/v1/jobs/{job}")
    fresh = await client.post("/v1/jobs", json=ATTRIBUTION, headers=KEY)
    assert (fresh.status_code, fresh.json()["id"] != job) == (202, True)


@pytest.mark.parametrize("key", ["", "x" * 256, "two words"])
async def test_a_key_out_of_bounds_is_refused(stand: Stand, client: httpx.AsyncClient, key: str) -> None:
    refused = await client.post("/v1/jobs", json=PATCHING, headers={"Idempotency-Key": key})
    assert refused.status_code == 422
    assert not stand.store.depth(POOL)
