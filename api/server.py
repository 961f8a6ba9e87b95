"""uvicorn as lensd needs it: bounded headers, problems also for what is not even HTTP, an end that does not hang."""

import asyncio
import logging
import signal
import socket
from http import HTTPStatus
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.errors import PROBLEM_MEDIA_TYPE, Problem
from services.contracts.errors import ErrorCode

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers. The application has a tighter bound; this one holds before it is asked."""

_NOT_HTTP = Problem(
    type=f"urn:lensd:error:{ErrorCode.INVALID_REQUEST}",
    title="Invalid request",
    status=HTTPStatus.BAD_REQUEST,
    detail=f"this is not HTTP/1.1, or its headers are larger than {MAX_HEAD_BYTES:,} bytes",
    code=ErrorCode.INVALID_REQUEST,
    instance="",
    request_id="",
)


class BoundedProtocol(HttpToolsProtocol):
    """Counts the bytes of a head that does not end: httptools itself would collect them for ever."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if was_in_head and self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        del msg
        body = _NOT_HTTP.model_dump_json()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n{body}".encode())
        self.transport.close()


class Server(uvicorn.Server):
    """Tells those who wait for jobs that the process is about to end, so that their connections do not hold it up."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("listening on http://%s:%d", self.config.host, self.config.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)


def make_server(app: FastAPI, closing: asyncio.Event, *, host: str, port: int, shutdown_s: int) -> Server:
    """A server that, when it ends, finishes what is under way for at most `shutdown_s` seconds."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=shutdown_s,
    )
    return Server(config, closing)


def run(server: Server) -> None:
    """Serve until SIGINT or SIGTERM."""
    # uvicorn raises the signal again once it has ended: leave by way of every `finally`, with the code of success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    server.run()


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit(0)
