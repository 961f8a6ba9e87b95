"""The server itself, over real sockets: what it answers to what is no proper HTTP, and how it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from fastapi import FastAPI, Request

from api.connection import MAX_HEAD_BYTES
from api.server import Server, make_server
from tests.api.conftest import Stand
from tests.api.specs import PATCHING

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[int]:
    """The port of `server`, which serves for as long as the block lasts."""
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def running(stand: Stand) -> AsyncIterator[tuple[Server, int]]:
    """The server and its port."""
    server = make_server(stand.app, stand.services.closing, host=HOST, port=0, shutdown_s=5)
    async with serving(server) as port:
        yield server, port


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n",
        b"FETCH / HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /é HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_not_proper_http_is_a_problem_and_the_end_of_the_connection(stand: Stand, data: bytes) -> None:
    async with running(stand) as (_, port):
        head, _, body = (await exchange(port, data)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "invalid_request"


@pytest.mark.parametrize("piece", [b"x" * 8_192, b"a: x\r\n" * 1_000], ids=["one-endless-header", "endless-headers"])
async def test_a_head_without_an_end_is_not_collected_for_ever(stand: Stand, piece: bytes) -> None:
    sent = 0
    async with running(stand) as (_, port):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\na: ")
        while not reader.at_eof() and sent < 10 * MAX_HEAD_BYTES:
            writer.write(piece)
            sent += len(piece)
            with suppress(TimeoutError, ConnectionResetError):
                await asyncio.wait_for(reader.read(), 0.02)
        writer.close()
    assert MAX_HEAD_BYTES <= sent < 3 * MAX_HEAD_BYTES


async def test_a_body_far_over_the_bound_is_answered_while_it_is_still_sent(stand: Stand) -> None:
    async with (
        running(stand) as (_, port),
        httpx.AsyncClient(base_url=f"http://{HOST}:{port}", trust_env=False) as client,
    ):
        headers = {"Authorization": f"Bearer {stand.key('alice')}", "Content-Type": "application/json"}
        response = await client.post("/v1/jobs", content=b" " * 5_000_000, headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


async def test_those_who_wait_do_not_hold_up_the_end(stand: Stand) -> None:
    headers = {"Authorization": f"Bearer {stand.key('alice')}"}
    async with (
        asyncio.timeout(10),
        running(stand) as (server, port),
        httpx.AsyncClient(base_url=f"http://{HOST}:{port}", headers=headers, trust_env=False) as client,
    ):
        job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
        following = asyncio.create_task(client.get(f"/v1/jobs/{job_id}/events", timeout=60))
        waiting = asyncio.create_task(client.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=60"}, timeout=60))
        await asyncio.sleep(0.2)
        server.should_exit = True
        assert "event: queued" in (await following).text
        assert (await waiting).json()["status"] == "queued"


@pytest.mark.parametrize(("trusted", "seen"), [((), HOST), (("10.0.0.0/8",), HOST), ((HOST,), "203.0.113.7")])
async def test_only_a_trusted_proxy_says_who_asks(stand: Stand, trusted: tuple[str, ...], seen: str) -> None:
    app = FastAPI()

    @app.get("/")
    async def address(request: Request) -> str:
        assert request.client is not None
        return request.client.host

    server = make_server(app, asyncio.Event(), host=HOST, port=0, shutdown_s=1, trusted_proxies=trusted)
    async with serving(server) as port, httpx.AsyncClient(base_url=f"http://{HOST}:{port}", trust_env=False) as client:
        answer = await client.get("/", headers={"X-Forwarded-For": "203.0.113.7"})
    assert answer.json() == seen
