"""The load generator of `benchmarks.load`: a process of its own, which says what it cost.

Speaks HTTP/1.1 over kept connections with no library between: a client library would cost more than the gateway.
"""

import asyncio
import gc
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import uvloop

_GIVE_UP_S = 90.0


@dataclass(frozen=True)
class Target:
    """Where the gateway listens, and the key to send."""

    port: int
    key: str


@dataclass(frozen=True)
class Request:
    """One request; sent any number of times."""

    method: str
    path: str
    body: bytes = b""
    wait_s: int = 0

    def encoded(self, key: str) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: lensd", f"Authorization: Bearer {key}"]
        if self.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        if self.wait_s:
            lines.append(f"Prefer: wait={self.wait_s}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass
class Outcome:
    """What became of a run: times in seconds, `statuses` how many answers of each HTTP status."""

    latencies: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    """By the machine's clock."""
    statuses: dict[int, int] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    """Ids of the jobs that answers named in `Location`."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the generator itself."""

    def note(self, began: float, status: int, location: str) -> None:
        self.latencies.append(time.perf_counter() - began)
        self.answered_at.append(time.time())
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if location:
            self.jobs.append(location)


class _Connection:
    """One kept connection; one request at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.body = b""

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._target.port)

    async def send(self, request: Request) -> tuple[int, str]:
        """Status and the job that `Location` names, or ''."""
        if self._writer is None or self._reader is None or self._reader.at_eof():
            # Not yet open, or closed by the gateway after some seconds without a request.
            self.close()
            await self.open()
        assert self._writer is not None
        assert self._reader is not None
        self._writer.write(request.encoded(self._target.key))
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = int(head[9:12])
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        self.body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return status, headers.get("location", "").removeprefix("/v1/jobs/")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def open_loop(target: Target, requests: Sequence[Request], rate: float, seconds: float) -> Outcome:
    """`rate` requests a second at fixed times, whether or not earlier ones are answered; latency counts from the time
    at which a request was due, so that a server that stalls does not hide it."""

    async def run(outcome: Outcome) -> None:
        idle: list[_Connection] = []
        start = time.perf_counter() + 0.1

        async def one(number: int) -> None:
            due = start + number / rate
            await asyncio.sleep(due - time.perf_counter())
            connection = idle.pop() if idle else _Connection(target)
            status, location = await connection.send(requests[number % len(requests)])
            outcome.note(due, status, location)
            idle.append(connection)

        try:
            await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
        finally:
            for connection in idle:
                connection.close()

    return _measured(run)


def closed_loop(target: Target, requests: Sequence[Request], connections: int, seconds: float) -> Outcome:
    """`connections` clients, each sending its next request when the last one is answered, over and over."""
    return _taken_in_turn(target, itertools.cycle(requests), connections, seconds)


def each_once(target: Target, requests: Sequence[Request], connections: int) -> Outcome:
    """The same, until every request is sent."""
    return _taken_in_turn(target, iter(requests), connections, _GIVE_UP_S)


def _taken_in_turn(target: Target, requests: Iterator[Request], connections: int, seconds: float) -> Outcome:
    async def run(outcome: Outcome) -> None:
        end = time.perf_counter() + seconds

        async def one() -> None:
            connection = _Connection(target)
            try:
                while (began := time.perf_counter()) < end:
                    request = next(requests, None)
                    if request is None:
                        return
                    outcome.note(began, *await connection.send(request))
            finally:
                connection.close()

        await asyncio.gather(*(one() for _ in range(connections)))

    return _measured(run)


def wait_together(target: Target, request: Request, clients: int, ready_file: str) -> Outcome:
    """`clients` clients send `request`, each on a connection of its own; `ready_file` appears once all are sent."""

    async def run(outcome: Outcome) -> None:
        connections = [_Connection(target) for _ in range(clients)]
        for start in range(0, clients, 100):
            await asyncio.gather(*(connection.open() for connection in connections[start : start + 100]))

        async def one(connection: _Connection) -> None:
            outcome.note(time.perf_counter(), *await connection.send(request))
            if json.loads(connection.body)["status"] not in {"succeeded", "cancelled"}:
                raise RuntimeError(f"a wait ended early: {connection.body[:300]!r}")

        try:
            waiting = [asyncio.create_task(one(connection)) for connection in connections]
            await asyncio.sleep(0)
            with open(ready_file, "w"):  # noqa: PTH123 - an empty file
                pass
            await asyncio.gather(*waiting)
        finally:
            for connection in connections:
                connection.close()

    return _measured(run)


def _measured(run: Callable[[Outcome], Awaitable[None]]) -> Outcome:
    outcome = Outcome()

    async def bounded() -> None:
        async with asyncio.timeout(_GIVE_UP_S):
            await run(outcome)

    gc.collect()
    gc.disable()
    wall, cpu = time.perf_counter(), _cpu()
    try:
        uvloop.run(bounded())
    finally:
        gc.enable()
    outcome.seconds, outcome.cpu_seconds = time.perf_counter() - wall, _cpu() - cpu
    return outcome


def _cpu() -> float:
    times = os.times()
    return times.user + times.system
