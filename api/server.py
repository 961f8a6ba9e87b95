"""uvicorn as lensd needs it: connections with bounds, proxies trusted by name only, an end that does not hang."""

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.connection import BoundedProtocol

log = logging.getLogger(__name__)


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


def make_server(
    app: FastAPI,
    closing: asyncio.Event,
    *,
    host: str,
    port: int,
    shutdown_s: int,
    patience_s: float = BoundedProtocol.patience_s,
    trusted_proxies: Sequence[str] = (),
) -> Server:
    """A server that, when it ends, finishes what is under way for at most `shutdown_s` seconds.

    `patience_s` is how long a client may keep it waiting. What `X-Forwarded-For` says counts from `trusted_proxies`.
    """
    protocol = type("PatientProtocol", (BoundedProtocol,), {"patience_s": patience_s})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
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
