"""uvicorn as lensd needs it: bounded headers, problems also for what is not even HTTP, an end that does not hang."""

import asyncio
import json
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.errors import PROBLEM_MEDIA_TYPE
from services.contracts.errors import ErrorCode

log = logging.getLogger(__name__)

MAX_UNPARSED_BYTES = 65_536
"""Of a request's line and headers. The application has a tighter bound; this one holds before it is asked."""

_REFUSAL = json.dumps(
    {
        "type": f"urn:lensd:error:{ErrorCode.INVALID_REQUEST}",
        "title": "Invalid request",
        "status": 400,
        "detail": f"this is not HTTP/1.1, or its headers are larger than {MAX_UNPARSED_BYTES:,} bytes",
        "code": ErrorCode.INVALID_REQUEST,
        "instance": "",
        "request_id": "",
    }
).encode()


class BoundedProtocol(HttpToolsProtocol):
    """Counts the bytes of headers as they arrive: httptools itself would collect them without end."""

    _head_bytes = 0

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        del msg
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\n"
            f"content-length: {len(_REFUSAL)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + _REFUSAL)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_UNPARSED_BYTES:
            raise ValueError("the headers are too large")


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


def serve(app: FastAPI, closing: asyncio.Event, *, host: str, port: int, shutdown_s: int) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way for at most `shutdown_s` seconds."""
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
    # uvicorn raises the signal again once it has ended: leave by way of every `finally`, with the code of success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    Server(config, closing).run()


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit(0)
