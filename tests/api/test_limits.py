"""What a request may weigh and in which form it may come."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from api.app import create_app
from api.limits import RequestLimits
from tests.api.conftest import Stand
from tests.api.specs import PATCHING

pytestmark = pytest.mark.anyio

BODY = json.dumps(PATCHING).encode()
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def small(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that takes bodies of no more than those of a good job."""
    app = create_app(stand.services, RequestLimits(body_bytes=len(BODY)))
    async with stand.client(stand.key("alice"), app) as client:
        yield client


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10):
        yield body[start : start + 10]


async def test_a_body_at_the_bound_is_taken(small: httpx.AsyncClient) -> None:
    assert (await small.post("/v1/jobs", content=BODY, headers=JSON)).status_code == 202
    assert (await small.post("/v1/jobs", content=in_pieces(BODY), headers=JSON)).status_code == 202


async def test_a_body_over_the_bound_is_refused_by_its_length(small: httpx.AsyncClient) -> None:
    response = await small.post("/v1/jobs", content=BODY + b" ", headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert f"at most {len(BODY)}" in response.json()["detail"]


async def test_a_body_that_does_not_tell_its_length_is_counted_as_it_comes(small: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b" " * 100

    response = await small.post("/v1/jobs", content=endless(), headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert sent <= len(BODY) + 200


async def test_a_length_that_lies_changes_nothing(small: httpx.AsyncClient) -> None:
    headers = {**JSON, "Content-Length": "2"}
    response = await small.post("/v1/jobs", content=in_pieces(BODY + b" " * 50), headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize("length", ["9" * 30, "9" * 5_000])
async def test_an_absurd_length_is_refused_as_too_large(client: httpx.AsyncClient, length: str) -> None:
    response = await client.post("/v1/jobs", content=in_pieces(BODY), headers={**JSON, "Content-Length": length})
    assert response.status_code == 413
    assert len(response.json()["detail"]) < 250


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "x" * 300])
async def test_a_compressed_body_is_refused(client: httpx.AsyncClient, encoding: str) -> None:
    headers = {**JSON, "Content-Encoding": encoding}
    response = await client.post("/v1/jobs", content=gzip.compress(BODY), headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert len(response.json()["detail"]) < 250


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "json",
        "",
        "multipart/form-data; boundary=x",
    ],
)
async def test_a_body_of_another_type_is_refused(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post("/v1/jobs", content=BODY, headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert "application/json" in response.json()["detail"]


async def test_a_body_without_a_type_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", content=BODY)
    assert response.status_code == 415


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json; charset="utf-8"']
)
async def test_json_in_utf_8_is_taken_however_it_is_spelt(client: httpx.AsyncClient, content_type: str) -> None:
    assert (await client.post("/v1/jobs", content=BODY, headers={"Content-Type": content_type})).status_code == 202


async def test_a_post_without_a_body_needs_no_type(client: httpx.AsyncClient) -> None:
    job_id = (await client.post("/v1/jobs", content=BODY, headers=JSON)).json()["id"]
    assert (await client.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 20_000}, {f"X-{index}": "x" for index in range(120)}])
async def test_too_many_or_too_long_headers_are_refused(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.get("/v1/models", headers=headers)
    assert (response.status_code, response.json()["code"]) == (431, "headers_too_large")


async def test_a_very_long_query_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/jobs", params={"label": "x" * 20_000})
    assert response.status_code == 431
    assert len(response.content) < 1_000


async def test_a_body_that_comes_too_slowly_is_given_up(stand: Stand) -> None:
    sent = 0

    async def trickling() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" "
            await asyncio.sleep(0.01)

    app = create_app(stand.services, RequestLimits(patience_s=0.2))
    async with asyncio.timeout(5), stand.client(stand.key("alice"), app) as client:
        response = await client.post("/v1/jobs", content=trickling(), headers=JSON)
    assert (response.status_code, response.json()["code"]) == (408, "request_timeout")
    assert response.headers["connection"] == "close"
    assert sent > 2


async def test_a_long_body_may_take_longer_than_a_short_one(stand: Stand) -> None:
    async def steady() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1_000
            await asyncio.sleep(0.05)
        yield BODY

    app = create_app(stand.services, RequestLimits(patience_s=0.2))
    async with asyncio.timeout(5), stand.client(stand.key("alice"), app) as client:
        response = await client.post("/v1/jobs", content=steady(), headers=JSON)
    assert response.status_code == 202


async def test_a_wait_for_the_end_of_a_job_is_no_slow_body(stand: Stand) -> None:
    app = create_app(stand.services, RequestLimits(patience_s=0.1))
    async with asyncio.timeout(5), stand.client(stand.key("alice"), app) as client:
        response = await client.post("/v1/jobs", content=BODY, headers={**JSON, "Prefer": "wait=1"})
    assert response.status_code == 202
