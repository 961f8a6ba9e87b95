"""One gateway process under load: the real stack on the loopback, the load from a process of its own.

    python -m benchmarks.load [--threads 2] [--rate 50]

1. Open loop: requests at fixed times, for `GET` of a job that has ended, for submitting, for submitting with
   `Prefer: wait`, and for the cards of random features of every SAE, no two the same. Latency counts from when a
   request was due. The jobs are small ones on the smallest model, so that it is the service that is measured.
2. Closed loop: as many requests as one gateway process answers. The worker stands still while jobs are submitted.
3. Ten waves of 1,000 clients that wait for one job, which is then cancelled: how much later than the job's end they
   know, what they cost in memory and in connections to the store.
4. One owner's single job on SmolLM2 beside another owner's 2,000, against the idle service and against the length of a
   chunk of forwards.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load_client import Outcome, Request, Target, closed_loop, each_once, open_loop, wait_together
from benchmarks.report import circumstances, table, write_section
from deploy.local.logs import StreamLog
from deploy.local.settings import LocalSettings
from deploy.local.stack import Stack

SECONDS = 10.0
CONNECTIONS = 16
WAITERS, WAVES = 1_000, 10
BACKLOG, SINGLES = 2_000, 20


def attribution(model: str, prompt: str, answer: str, foil: str) -> dict[str, Any]:
    return {
        "kind": "attribution",
        "model": model,
        "method": {"type": "direct_logit_attribution"},
        "examples": [{"prompt": prompt, "answer": answer, "foil": foil}],
        "cache": False,
    }


SMALL = attribution("induction-2l", "t5 t9 t12 t5", " t9", " t12")
USUAL = attribution("smollm2-135m", "When John and Mary went to the shops, John gave the bag to", " Mary", " John")
PLACES = ("shops", "park", "sea", "zoo", "bank", "pool", "farm", "lake", "bar")
THINGS = ("bag", "key", "cup", "map", "ball", "book")
CHUNK = USUAL | {
    "examples": [
        {
            "prompt": f"When John and Mary went to the {place}, John gave the {thing} to",
            "answer": " Mary",
            "foil": " John",
        }
        for place in PLACES
        for thing in THINGS
    ]
}
"""54 prompts of 14 tokens: as many as the 768 positions of a batch hold."""


@dataclass(frozen=True)
class Bench:
    """The stack under load: its processes, two tenants, and the process that makes the load."""

    gateway: psutil.Process
    worker: psutil.Process
    store_port: int
    ada: Target
    bob: Target
    generator: ProcessPoolExecutor

    def load(self, work: Callable[..., Outcome], *arguments: Any) -> Outcome:
        """Run `work` of `benchmarks.load_client` in the generator."""
        return self.generator.submit(work, *arguments).result()

    @contextmanager
    def without_worker(self) -> Iterator[None]:
        """The worker stands still for the length of the block."""
        self.worker.suspend()
        try:
            yield
        finally:
            self.worker.resume()

    def settle(self) -> None:
        """Wait until the gateway has nothing to do."""
        for _ in range(200):
            before = self.gateway.cpu_times()
            time.sleep(0.2)
            after = self.gateway.cpu_times()
            if after.user + after.system - before.user - before.system < 0.02:
                return
        raise RuntimeError("the gateway does not come to rest")

    def store_connections(self) -> int:
        return sum(bool(one.raddr) and one.raddr.port == self.store_port for one in self.gateway.net_connections("tcp"))

    def rss(self) -> int:
        return int(self.gateway.memory_info().rss)


def ask(target: Target, method: str, path: str, body: object = None, wait_s: int = 0) -> dict[str, Any]:
    """One request outside the measurement; the JSON of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=120)
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    if wait_s:
        headers["Prefer"] = f"wait={wait_s}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
    document: dict[str, Any] = json.loads(text or b"{}")
    return document


def finished(target: Target, spec: object) -> str:
    """The id of a job that has succeeded."""
    job = ask(target, "POST", "/v1/jobs", spec, wait_s=60)
    if job["status"] != "succeeded":
        raise RuntimeError(f"a job did not succeed: {job}")
    return str(job["id"])


def submission(spec: object, wait_s: int = 0) -> Request:
    return Request("POST", "/v1/jobs", json.dumps(spec).encode(), wait_s)


def milliseconds(latencies: Sequence[float], share: float) -> str:
    return f"{sorted(latencies)[int(share * (len(latencies) - 1))] * 1e3:.1f} ms"


def answers(outcome: Outcome, *expected: int) -> Outcome:
    """The outcome, if all answers have one of the expected statuses."""
    if set(outcome.statuses) - set(expected):
        raise RuntimeError(f"answers of the statuses {outcome.statuses}, expected {expected}")
    return outcome


def random_cards(bench: Bench, count: int) -> list[Request]:
    """Requests for so many features' cards, drawn without replacement from all SAEs' (seeded)."""
    every = [
        f"/v1/saes/{sae['id']}/features/{index}"
        for sae in ask(bench.ada, "GET", "/v1/saes")["saes"]
        for index in range(sae["features"])
    ]
    drawn = random.Random(0).sample(every, min(count, len(every)))  # noqa: S311 - a sample, no secret
    return [Request("GET", path) for path in drawn]


def at_a_rate(bench: Bench, rate: float) -> str:
    job = finished(bench.ada, USUAL)
    finished(bench.ada, SMALL)
    cards = random_cards(bench, int(rate * SECONDS))
    work = (
        ("`GET /v1/jobs/{id}`", [Request("GET", f"/v1/jobs/{job}")], (200,)),
        ("`POST /v1/jobs`", [submission(SMALL)], (202,)),
        ("`POST /v1/jobs`, `Prefer: wait`", [submission(SMALL, wait_s=30)], (200,)),
        ("`GET /v1/saes/{id}/features/{index}`, random features (median: bar 10 ms)", cards, (200,)),
    )
    rows = []
    for name, requests, statuses in work:
        outcome = answers(bench.load(open_loop, bench.ada, requests, rate, SECONDS), *statuses)
        median, late = (milliseconds(outcome.latencies, share) for share in (0.5, 0.99))
        rows.append((name, median, late, cost(outcome)))
        bench.settle()
    return table((f"at {rate:g} requests/s for {SECONDS:g} s", "median", "p99", "load generator's CPU"), rows)


def as_many_as_possible(bench: Bench) -> str:
    job = finished(bench.ada, USUAL)
    read = bench.load(closed_loop, bench.ada, [Request("GET", f"/v1/jobs/{job}")], CONNECTIONS, SECONDS)
    with bench.without_worker():
        written = bench.load(closed_loop, bench.ada, [submission(SMALL)], CONNECTIONS, SECONDS)
        forget(bench, written.jobs)
    rows = [
        (
            name,
            f"{len(outcome.latencies) / outcome.seconds:.0f}/s",
            milliseconds(outcome.latencies, 0.99),
            cost(outcome),
        )
        for name, outcome in (
            ("`GET /v1/jobs/{id}`", answers(read, 200)),
            ("`POST /v1/jobs`", answers(written, 202)),
        )
    ]
    head = (f"{CONNECTIONS} connections, one gateway process", "requests", "p99", "load generator's CPU")
    return table(head, rows)


def forget(bench: Bench, jobs: Sequence[str]) -> None:
    """Delete these jobs, but for those that run."""
    deletions = [Request("DELETE", f"/v1/jobs/{job}") for job in jobs]
    answers(bench.load(each_once, bench.ada, deletions, CONNECTIONS), 204, 409)


def cost(outcome: Outcome) -> str:
    return f"{outcome.cpu_seconds / outcome.seconds:.0%} of a core"


def waiting_together(bench: Bench) -> str:
    before, lags, waiting, connections = bench.rss(), [], [], []
    with bench.without_worker(), tempfile.TemporaryDirectory() as folder:
        for wave in range(WAVES):
            job = ask(bench.ada, "POST", "/v1/jobs", SMALL)["id"]
            ready = Path(folder) / str(wave)
            request = Request("GET", f"/v1/jobs/{job}", wait_s=60)
            outcome = bench.generator.submit(wait_together, bench.ada, request, WAITERS, str(ready))
            while not ready.exists() and not outcome.done():
                time.sleep(0.01)
            bench.settle()
            waiting.append(bench.rss())
            connections.append(bench.store_connections())
            ended = ask(bench.ada, "POST", f"/v1/jobs/{job}/cancel")["finished_at"]
            moment = datetime.fromisoformat(ended).timestamp()
            lags += [at - moment for at in answers(outcome.result(), 200).answered_at]
    bench.settle()
    after = bench.rss()
    return (
        f"{WAITERS:,} clients waiting at once for one job in one gateway process, {WAVES} times: they have the answer "
        f"{milliseconds(lags, 0.5)} after the job's end at the median, {milliseconds(lags, 0.99)} at the 99th "
        f"percentile; meanwhile the gateway holds at most {max(connections)} connections to the store. The first "
        f"{WAITERS:,} take {(waiting[0] - before) / WAITERS / 1024:.0f} KiB each. Resident memory: "
        f"{mib(before)} before, {mib(waiting[0])} with the first {WAITERS:,} waiting, {mib(max(waiting))} at most, "
        f"{mib(after)} after {WAITERS * WAVES:,} waits."
    )


def mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB"


def beside_a_backlog(bench: Bench) -> str:
    def singles(spec: object, count: int = SINGLES) -> list[float]:
        latencies = []
        for _ in range(count):
            began = time.perf_counter()
            finished(bench.bob, spec)
            latencies.append(time.perf_counter() - began)
        return latencies

    alone = singles(USUAL)
    chunk = statistics.median(singles(CHUNK, 5))
    lines = []
    for priority in ("batch", "interactive"):
        jobs = [submission(USUAL | {"priority": priority})] * BACKLOG
        backlog = answers(bench.load(each_once, bench.ada, jobs, CONNECTIONS), 202).jobs
        beside = singles(USUAL)
        if not ask(bench.ada, "GET", "/v1/jobs?status=queued&limit=1")["jobs"]:
            raise RuntimeError("the backlog was worked off before the single jobs were")
        forget(bench, backlog)
        later = statistics.median(beside) - statistics.median(alone)
        times = (milliseconds(beside, share) for share in (0.5, 1))
        lines.append((f"{BACKLOG:,} of priority `{priority}`", *times, f"{later / chunk:.2f}"))
    head = ("another owner's jobs in line", "median", "at most", "later than alone, in chunks (bar: 1 behind `batch`)")
    return (
        f"One owner's single attribution job on SmolLM2-135M, {SINGLES} one after another. A job of one full chunk of "
        f"forwards, alone, takes {1000 * chunk:.0f} ms (median of 5).\n\n"
        + table(head, [("none", milliseconds(alone, 0.5), milliseconds(alone, 1), "0"), *lines])
    )


@contextmanager
def stack_under_load(home: Path, port: int) -> Iterator[Bench]:
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryFile("w+") as log,
        Stack(LocalSettings(home=home, port=port), StreamLog(log)) as stack,
        ProcessPoolExecutor(1, mp_context=spawn) as generator,
    ):
        ada, bob = (Target(port, stack.issue_key(name, timedelta(hours=1))) for name in ("ada", "bob"))
        run = home / "run"
        gateway, worker = (psutil.Process(int((run / f"{name}.pid").read_text())) for name in ("gateway", "worker"))
        store_port = int((run / "redis-url").read_text().strip().rpartition(":")[2].partition("/")[0])
        yield Bench(gateway, worker, store_port, ada, bob, generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--port", type=int, default=8398)
    given = parser.parse_args()
    # One key makes all the load here: its rate is not what is measured.
    os.environ |= {"LENSD_THREADS": str(given.threads), "LENSD_REQUESTS_PER_SECOND": "100000", "LENSD_DRAIN_S": "0"}
    home = Path(os.environ.get("LENSD_HOME", ".lensd")).resolve()
    before = os.getloadavg()[0]
    with stack_under_load(home, given.port) as bench:
        parts = [
            at_a_rate(bench, given.rate),
            as_many_as_possible(bench),
            waiting_together(bench),
            beside_a_backlog(bench),
        ]
    command = f"python -m benchmarks.load --threads {given.threads} --rate {given.rate:g}"
    where = circumstances(command, given.threads, (before, os.getloadavg()[0]))
    write_section("Load", "\n\n".join([*parts, where]))


if __name__ == "__main__":
    main()
