"""A job that kills its worker each time it runs, among good neighbours in its chunk; and one that outgrows memory.

The killer is this drill: it watches which jobs each worker says it is about to run, and sends SIGKILL whenever the
poisonous one is among them. Of the second job it knows nothing: it kills, as a kernel would, a worker that takes more
memory than it is allowed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import psutil

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.jobs import gluttonous, middling, small, sweep
from tests.chaos.ledger import Client, Entry, Ledger
from tests.chaos.load import Load
from tests.chaos.plant import Plant, Process
from tests.chaos.recorder import Recorder
from tests.processes import eventually

ATTEMPTS = 3
UNBLAMED = 1
"""A worker's death is not held against a job that has worked by itself for less than two heartbeats while the engine
ran its neighbours: the first may be such a one, in the later ones the job is alone."""
END_S = 400.0
LOOK_EVERY_S = 0.002
SETTLE_S = 3.0
ALLOWED_BYTES = 200 * 2**20
"""What a worker may take beyond what it holds when idle."""

Trigger = Callable[[Process], bool]


def run(plant: Plant, scale: Scale) -> Findings:
    findings = Findings()
    with Recorder(plant) as recorder:
        _poison(plant, scale, recorder, findings)
        if scale.memory:
            _outgrow(plant, scale, recorder, findings)
    return findings


def _poison(plant: Plant, scale: Scale, recorder: Recorder, findings: Findings) -> None:
    load = Load(plant, recorder, Ledger())
    client = Client(plant, load.ledger)
    poison: list[str] = []

    def runs_it(worker: Process) -> bool:
        chunks = [redis.get(key) or b"" for key in redis.scan_iter(f"lensd:executing:*-{worker.pid}-*")]
        return any(f" {job_id}:".encode() in chunk for job_id in poison for chunk in chunks)

    with plant.redis() as redis, _killed_when(plant, runs_it) as kills:
        neighbours = [client.submit(middling(number)) for number in range(scale.neighbours // 2)]
        entry = client.submit(sweep(layers=8))  # long enough to be caught at it each time
        poison.append(entry.job_id)
        neighbours += [client.submit(middling(number)) for number in range(scale.neighbours - len(neighbours))]
        _judge(load, entry, neighbours, kills, findings=findings, which="the poisonous job")
    client.hang_up()
    plant.wait_for_workers()


def _outgrow(plant: Plant, scale: Scale, recorder: Recorder, findings: Findings) -> None:
    load = Load(plant, recorder, Ledger())
    client = Client(plant, load.ledger)
    # New ones: a worker that has worked keeps memory, and takes less more.
    for worker in plant.workers:
        worker.kill()
    plant.start_workers()
    idle = {worker.name: _settled_bytes(worker) for worker in plant.workers}

    def outgrows(worker: Process) -> bool:
        try:
            return worker.rss_bytes() > idle[worker.name] + ALLOWED_BYTES
        except psutil.Error:
            return False

    with _killed_when(plant, outgrows) as kills:
        entry = client.submit(gluttonous())
        # Neighbours of little memory: what a worker takes beyond the bound is the one job's.
        neighbours = [client.submit(small(number)) for number in range(scale.neighbours)]
        which = "the job that outgrows memory"
        _judge(load, entry, neighbours, kills, findings=findings, which=which, unblamed=UNBLAMED)
    client.hang_up()
    plant.wait_for_workers()


def _settled_bytes(worker: Process) -> int:
    """Its memory once that grows no more: a model is loaded before all its weights have been touched."""
    seen = 0
    while (now := worker.rss_bytes()) > seen:
        seen = now
        time.sleep(SETTLE_S)
    return seen


def _judge(
    load: Load,
    entry: Entry,
    neighbours: list[Entry],
    kills: list[int],
    *,
    findings: Findings,
    which: str,
    unblamed: int = 0,
) -> None:
    everything = [entry, *neighbours]
    ended = eventually(lambda: load.ended(everything), END_S)
    findings.holds(f"{which}, and its neighbours, end", "yes", "yes" if ended else "no", ended)
    (document,) = load.documents([entry])
    error = document["error"] or {}
    findings.equal(f"{which} ends", "failed: worker_lost", f"{document['status']}: {error.get('code')}")
    attempts = document["attempt"]
    findings.equal(f"{which}: workers killed, one by each attempt", attempts, len(kills))
    allowed = list(range(ATTEMPTS, ATTEMPTS + unblamed + 1))
    with load.plant.redis() as redis:
        blamed = 1 + int(cast("bytes | None", redis.hget(f"lensd:job:{entry.job_id}", "blamed")) or 0)
    findings.equal(f"{which}: deaths held against it, the last among them", ATTEMPTS, blamed)
    findings.holds(f"{which}: attempts", " or ".join(map(str, allowed)), attempts, attempts in allowed)
    succeeded = sum(d["status"] == "succeeded" for d in load.documents(neighbours))
    findings.equal(f"{which}: neighbours that succeed", len(neighbours), succeeded)


@contextmanager
def _killed_when(plant: Plant, trigger: Trigger) -> Iterator[list[int]]:
    """Workers die while the trigger holds of them, and are started again; the process ids that died."""
    kills: list[int] = []
    ending = threading.Event()

    def watch() -> None:
        while not ending.wait(LOOK_EVERY_S):
            for worker in plant.workers:
                if worker.alive and trigger(worker):
                    kills.append(worker.kill())
                    worker.start()

    thread = threading.Thread(target=watch, name="killer", daemon=True)
    thread.start()
    try:
        yield kills
    finally:
        ending.set()
        thread.join()


DRILL = Drill("poison", "a job that kills its worker each time, one that outgrows memory, and good neighbours", run)
