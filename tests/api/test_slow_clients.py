"""Clients that keep a connection and give or take nothing, over real sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from fastapi import FastAPI
from starlette.responses import Response, StreamingResponse

from api.server import make_server
from tests.api.conftest import Stand
from tests.api.specs import PATCHING

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
PATIENCE_S = 0.3
HEAD = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
LARGE = 30_000_000


@asynccontextmanager
async def connected(
    stand: Stand, app: FastAPI | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that loses its patience soon."""
    closing = stand.services.closing
    server = make_server(app or stand.app, closing, host=HOST, port=0, shutdown_s=1, patience_s=PATIENCE_S)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(HOST, server.servers[0].sockets[0].getsockname()[1])
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


async def trickle(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Sends a byte now and then, as long as someone listens."""
    with suppress(ConnectionError):
        for index in range(len(data)):
            writer.write(data[index : index + 1])
            await writer.drain()
            await asyncio.sleep(PATIENCE_S / 10)


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that comes. Bytes that the server did not wait for may reset the connection: what came before that counts."""
    taken = b""
    with suppress(ConnectionResetError):
        while piece := await reader.read(1):
            taken += piece
    return taken


async def test_a_head_that_trickles_in_is_given_up(stand: Stand) -> None:
    async with connected(stand) as (reader, writer):
        trickling = asyncio.create_task(trickle(writer, b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 1_000))
        head, _, body = (await until_closed(reader)).partition(b"\r\n\r\n")
        await trickling
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"X-Content-Type-Options: nosniff" in head
    assert json.loads(body)["code"] == "request_timeout"


async def test_a_second_head_that_trickles_in_is_given_up_too(stand: Stand) -> None:
    async with connected(stand) as (reader, writer):
        writer.write(HEAD)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        trickling = asyncio.create_task(trickle(writer, HEAD.replace(b"host", b"a: b\r\n" * 1_000 + b"host")))
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 408 ")
        await trickling


async def test_a_connection_on_which_nothing_is_asked_is_closed(stand: Stand) -> None:
    async with connected(stand) as (reader, _):
        assert await reader.read() == b""


async def test_blank_lines_keep_no_connection_open(stand: Stand) -> None:
    async with connected(stand) as (reader, writer):
        trickling = asyncio.create_task(trickle(writer, b"\r\n" * 1_000))
        assert await until_closed(reader) == b""
        await trickling


async def test_the_rest_of_a_body_that_is_answered_already_may_not_trickle_for_ever(stand: Stand) -> None:
    async with connected(stand) as (reader, writer):
        writer.write(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 1000\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 415 ")
        trickling = asyncio.create_task(trickle(writer, b" " * 1_000))
        await until_closed(reader)
        await trickling


async def test_an_answer_that_takes_long_to_come_is_waited_for(stand: Stand) -> None:
    body = json.dumps(PATCHING).encode()
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stand.key('alice')}\r\nprefer: wait=1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    async with connected(stand) as (reader, writer):
        writer.write(head.encode() + body)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize("first", [b"part", b""], ids=["begun", "not-begun"])
async def test_half_a_head_behind_a_request_is_not_answered_in_its_place(stand: Stand, first: bytes) -> None:
    app = FastAPI()

    @app.get("/slow")
    async def slow() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield first
            await asyncio.sleep(3 * PATIENCE_S)
            yield b"rest"

        if not first:
            await asyncio.sleep(3 * PATIENCE_S)
        return StreamingResponse(pieces())

    async with connected(stand, app) as (reader, writer):
        writer.write(HEAD.replace(b"/livez", b"/slow") + b"GET /")
        answer = await reader.read()
    assert b" 408 " not in answer
    assert answer.startswith(b"HTTP/1.1 200 ") is bool(first)


@pytest.fixture
def large() -> FastAPI:
    app = FastAPI()

    @app.get("/large")
    async def large() -> Response:
        return Response(b"x" * LARGE)

    return app


async def test_an_answer_that_nobody_takes_is_dropped(stand: Stand, large: FastAPI) -> None:
    async with connected(stand, large) as (reader, writer):
        writer.write(HEAD.replace(b"/livez", b"/large"))
        await reader.readuntil(b"\r\n")
        await asyncio.sleep(4 * PATIENCE_S)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(LARGE)


async def test_an_answer_that_is_taken_slowly_comes_whole(stand: Stand, large: FastAPI) -> None:
    started, taken = time.monotonic(), 0
    async with connected(stand, large) as (reader, writer):
        writer.write(HEAD.replace(b"/livez", b"/large"))
        await reader.readuntil(b"\r\n\r\n")
        while taken < LARGE:
            taken += len(await reader.read(2_000_000))
            if time.monotonic() - started < 4 * PATIENCE_S:
                await asyncio.sleep(PATIENCE_S / 20)
    assert taken == LARGE


async def test_a_body_shorter_than_it_said_is_given_up(stand: Stand) -> None:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stand.key('alice')}\r\n"
        "content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    )
    async with connected(stand) as (reader, writer):
        writer.write(head.encode())
        writer.write_eof()
        assert await reader.read() == b""


async def test_a_body_longer_than_it_said_is_no_second_request(stand: Stand) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stand.key('alice')}\r\n"
    async with connected(stand) as (reader, writer):
        writer.write(f"{head}content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}} and more\r\n\r\n".encode())
        answer = await reader.read()
    assert answer.startswith((b"HTTP/1.1 422 ", b"HTTP/1.1 400 "))
    assert b"HTTP/1.1 2" not in answer
