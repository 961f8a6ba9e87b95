"""A batch of 10,000 tiny jobs: how long its validation takes, and what other requests and single jobs feel of it.

    python -m benchmarks.batches [--lines 10000]

One client asks for jobs, one request after another, on the idle service, while the batch is validated, and while it is
fed and run. Single interactive jobs are posted on the idle service and while the batch runs. Then it is cancelled.
"""

import argparse
import http.client
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import circumstances, table, write_section
from benchmarks.service import Server, bodies, served

ASKED_S = 5.0
SINGLE_JOBS = 20
WARM_UP = 5


class Client:
    """One connection to the service."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        self._headers = {"Authorization": f"Bearer {server.key}"}

    def ask(self, method: str, path: str, body: bytes | None = None, media_type: str = "") -> Any:
        headers = self._headers | ({"Content-Type": media_type} if media_type else {})
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:200]!r}")
        return json.loads(text)

    def asked_while(self, holds: Callable[[], bool]) -> list[float]:
        """Milliseconds of each `GET /v1/jobs` of 20 jobs, for as long as `holds`."""
        taken = []
        while holds():
            started = time.perf_counter()
            self.ask("GET", "/v1/jobs?limit=20")
            taken.append((time.perf_counter() - started) * 1e3)
        return taken


def for_seconds(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


def posted(client: Client, lines: int) -> str:
    """The path of a batch of so many tiny jobs."""
    jobs = bodies(lines, seed=7)
    upload = "".join(json.dumps({"custom_id": f"line-{i}", "job": job}) + "\n" for i, job in enumerate(jobs))
    batch = client.ask("POST", "/v1/batches", upload.encode(), "application/jsonl")
    return f"/v1/batches/{batch['id']}"


def line(name: str, milliseconds: Sequence[float], before: Sequence[float]) -> tuple[str, ...]:
    def at(share: float, values: Sequence[float]) -> float:
        return sorted(values)[int(share * (len(values) - 1))]

    worse = at(0.5, milliseconds) / at(0.5, before)
    return (
        name,
        *(f"{at(share, milliseconds):.1f} ms" for share in (0.5, 0.99)),
        f"{worse:.2f}×",
        str(len(milliseconds)),
    )


def measure(server: Server, lines: int) -> tuple[list[tuple[str, ...]], str]:
    jobs = bodies(2 * SINGLE_JOBS + WARM_UP, seed=8)
    single = server.session()
    for body in jobs[:WARM_UP]:
        single(body)
    alone = [single(body) * 1e3 for body in jobs[WARM_UP : WARM_UP + SINGLE_JOBS]]
    client = Client(server)
    idle = client.asked_while(for_seconds(ASKED_S))
    watcher = Client(server)
    started = time.perf_counter()
    path = posted(client, lines)
    accepted_s = time.perf_counter() - started
    validating = client.asked_while(lambda: watcher.ask("GET", path)["status"] == "validating")
    validated_s = time.perf_counter() - started - accepted_s
    running = client.asked_while(for_seconds(ASKED_S))
    single = server.session()
    beside = [single(body) * 1e3 for body in jobs[WARM_UP + SINGLE_JOBS :]]
    watcher = Client(server)
    counts = watcher.ask("GET", path)["counts"]
    watcher.ask("POST", f"{path}/cancel", b"", "application/json")
    cancelling = time.perf_counter()
    while watcher.ask("GET", path)["status"] != "ended":
        time.sleep(0.05)
    told = (
        f"{lines:,} lines were accepted in {accepted_s:.2f} s and validated in {validated_s:.1f} s "
        f"({lines / validated_s:,.0f} lines/s); with {counts['succeeded']:,} of them done and {counts['queued']:,} in "
        f"the queue, cancelling took {time.perf_counter() - cancelling:.1f} s."
    )
    rows = [
        line("`GET /v1/jobs`, idle", idle, idle),
        line("`GET /v1/jobs`, while the batch is validated", validating, idle),
        line("`GET /v1/jobs`, while it runs", running, idle),
        line("a single small job, idle", alone, alone),
        line("a single small job, while the batch runs", beside, alone),
    ]
    return rows, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8398)
    parser.add_argument("--dry", action="store_true", help="print the section instead of writing it")
    given = parser.parse_args()
    os.environ["LENSD_THREADS"] = str(given.threads)
    before = os.getloadavg()[0]
    with served(Path(os.environ.get("LENSD_HOME", ".lensd")).resolve(), given.port) as server:
        rows, told = measure(server, given.lines)
    command = f"python -m benchmarks.batches --lines {given.lines} --threads {given.threads}"
    where = circumstances(command, given.threads, (before, os.getloadavg()[0]))
    head = ("one after another", "median", "99th percentile", "of idle", "count")
    section = f"{table(head, rows)}\n\n{told}\n\n{where}"
    if given.dry:
        print(section)
    else:
        write_section("Batches", section)


if __name__ == "__main__":
    main()
