"""Clients that vanish: while they wait for a job, while they follow its events, in the middle of what they send.

No worker runs meanwhile, so every wait is a real one. Half of the clients close their connection, half die (RST). They
come twice: what the gateway gains from the first round is threads, connections and caches that fill once. The second
round is measured from outside, in two halves: a leak shows in each of them, a step of the allocator in one.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.jobs import small
from tests.chaos.ledger import Client, Ledger
from tests.chaos.load import Load
from tests.chaos.plant import Plant
from tests.chaos.recorder import Recorder
from tests.chaos.wire import Wire, many
from tests.processes import eventually

JOBS = 20
AT_ONCE = 100
WARM_UP = 400
"""Clients of the first round at least: for all the threads and connections to the store that the gateway ever has."""
WAIT_S = 10
GROWTH_BYTES = 3_000_000
"""In each half: a leak of 600 bytes a client would be more, over 5,000 of them. Of seven times 5,000 clients each added
at most 0.7 MB, but for the first, and for one step of 10 MB."""
STILL_WARMING_BYTES = 22_000_000
"""What a gateway may gain beside that after a short first round, which does not fill all that fills once."""
POOLED = 40
"""anyio's pool of threads, each of which may open a connection to the store: how many there are after a round is
chance, since idle ones are given back when one is next handed out. But they never grow with the clients."""
SETTLE_S = 30.0
END_S = 300.0


@dataclass(frozen=True)
class Size:
    """What the gateway holds."""

    rss_bytes: int
    files: int
    threads: int
    store_connections: int


def run(plant: Plant, scale: Scale) -> Findings:
    findings, ledger = Findings(), Ledger()
    for worker in plant.workers:
        worker.end()
    client = Client(plant, ledger)
    with Recorder(plant) as recorder:
        entries = [client.submit(small(number)) for number in range(JOBS)]
        jobs = [entry.job_id for entry in entries]
        fresh = _size(plant)
        began = time.monotonic()
        first = max(WARM_UP, scale.clients)
        wrong = asyncio.run(_vanish(plant, jobs, first))
        took = time.monotonic() - began
        sizes = [_settled(plant)]
        # Settling takes longer than a short round, which is not halved.
        halves = 2 if scale.clients > WARM_UP else 1
        for _ in range(halves):
            wrong += asyncio.run(_vanish(plant, jobs, scale.clients // halves))
            sizes.append(_settled(plant))
        plant.start_workers()
        ended = eventually(lambda: all(recorder.ends(job_id) for job_id in jobs), END_S)
        documents = Load(plant, recorder, ledger).documents(entries)
    clients = first + scale.clients
    findings.equal("clients that vanished", clients, clients - len(wrong))
    _judge(findings, sizes, GROWTH_BYTES + (STILL_WARMING_BYTES if first > scale.clients else 0))
    succeeded = sum(document["status"] == "succeeded" for document in documents) if ended else 0
    findings.equal("the jobs they waited for that then succeed", JOBS, succeeded)
    findings.equal("unexpected errors in the gateway's log", 0, plant.gateway.log.count("unexpected error"))
    memory = ", ".join(f"{size.rss_bytes / 1e6:.1f}" for size in (fresh, *sizes))
    findings.note(f"MB of memory before, after the first round, and in the second: {memory}")
    findings.note(f"{first:,} clients in the first round, in {took:.0f} s, and {scale.clients:,} in the second")
    if wrong:
        findings.note(f"the first client that could not: {wrong[0]!r}")
    client.hang_up()
    return findings


def _judge(findings: Findings, sizes: Sequence[Size], bytes_a_half: int) -> None:
    """What the gateway gained between the first of `sizes` and the last; of its memory, what it gained each time."""
    before, after = sizes[0], sizes[-1]
    grown = min(later.rss_bytes - earlier.rss_bytes for earlier, later in itertools.pairwise(sizes))
    what = "in each half of the second round the gateway's memory grew by"
    findings.at_most(what, bytes_a_half / 1e6, grown / 1e6, " MB")
    findings.at_most("its open files: more by", POOLED, after.files - before.files)
    findings.at_most("its threads: more by", POOLED, after.threads - before.threads)
    connections = after.store_connections - before.store_connections
    findings.at_most("its connections to the store: more by", POOLED, connections)


async def _vanish(plant: Plant, jobs: list[str], count: int) -> list[BaseException]:
    body = json.dumps(small(0)).encode()

    async def client(number: int) -> None:
        wire = await Wire.open(plant)
        job = f"/v1/jobs/{jobs[number % len(jobs)]}"
        match number % 3:
            case 0:
                await wire.send("GET", job, f"Prefer: wait={WAIT_S}")
                await asyncio.sleep(0.05)
            case 1:
                await wire.send("GET", f"{job}/events")
                await wire.first_bytes()
            case _:
                await wire.send("POST", "/v1/jobs", body=body[: len(body) // 2], of=len(body))
                await asyncio.sleep(0.02)
        wire.vanish(reset=number % 2 == 0)

    return list(await many(count, AT_ONCE, client))


def _settled(plant: Plant) -> Size:
    """What the gateway holds once it holds no connection of a client that left, and every wait is over."""
    time.sleep(WAIT_S)
    seen = _size(plant)
    give_up_at = time.monotonic() + SETTLE_S
    while time.monotonic() < give_up_at:
        time.sleep(2)
        now = _size(plant)
        if now.files >= seen.files:
            break
        seen = now
    return _size(plant)


def _size(plant: Plant) -> Size:
    gateway = plant.gateway
    with plant.redis() as redis:
        connections = len(redis.client_list())
    return Size(gateway.rss_bytes(), gateway.open_files(), gateway.threads(), connections)


DRILL = Drill("vanishing", "clients that vanish while they wait, follow events, or send", run)
