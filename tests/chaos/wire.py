"""Many connections at once, as rough as clients can be: plain sockets, a request written by hand."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.plant import Plant

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST at once, as a process that died does."""


@dataclass(frozen=True)
class Answer:
    """`at` is when it was whole, in seconds of this machine's clock."""

    status: int
    document: Any
    at: float


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, plant: Plant) -> None:
        self._reader = reader
        self._writer = writer
        self._plant = plant

    @classmethod
    async def open(cls, plant: Plant) -> "Wire":
        reader, writer = await asyncio.open_connection("127.0.0.1", plant.port)
        return cls(reader, writer, plant)

    async def send(self, method: str, path: str, *headers: str, body: bytes = b"", of: int | None = None) -> None:
        """Send a request; `of` announces a longer body than is sent."""
        length = len(body) if of is None else of
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: lensd",
            f"Authorization: {self._plant.headers['Authorization']}",
            *headers,
            *(["Content-Type: application/json", f"Content-Length: {length}"] if length else []),
        ]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self._writer.drain()

    async def first_bytes(self) -> bytes:
        return await self._reader.read(1_000)

    async def answer(self) -> Answer:
        """A whole answer with a Content-Length."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, _, lines = head.partition("\r\n")
        length = next(
            int(line.split(":")[1]) for line in lines.splitlines() if line.lower().startswith("content-length")
        )
        raw = await self._reader.readexactly(length)
        return Answer(int(status.split()[1]), json.loads(raw), time.time())

    async def until(self, text: bytes) -> float:
        """When `text` has come, in seconds of this machine's clock."""
        seen = b""
        while text not in seen:
            piece = await self._reader.read(65_536)
            if not piece:
                raise ConnectionError("the stream ended before")
            seen = seen[-len(text) :] + piece
        return time.time()

    def vanish(self, *, reset: bool) -> None:
        if reset:
            sock: socket.socket = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.close()


async def many(count: int, at_once: int, client: Callable[[int], Awaitable[None]]) -> Sequence[BaseException]:
    """Run `count` clients, `at_once` at a time; what went wrong with any."""
    turn = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with turn:
            await client(number)

    ended = await asyncio.gather(*(one(number) for number in range(count)), return_exceptions=True)
    return [error for error in ended if error is not None]
