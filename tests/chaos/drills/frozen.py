"""A worker frozen (SIGSTOP) with a chunk of jobs under way, past its lease; then it goes on, and its results come late.

Once woken, the worker finishes what it was at and offers it, or learns before that it has lost the job and drops it.
"""

from typing import cast

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.jobs import middling
from tests.chaos.ledger import Client, Ledger
from tests.chaos.load import TOLERANCE, Load, max_distance
from tests.chaos.plant import Plant, Process
from tests.chaos.recorder import Recorder
from tests.processes import eventually

TRIES = 20
START_AGAIN_S = 20.0
END_S = 60.0


def run(plant: Plant, scale: Scale) -> Findings:
    findings, ledger = Findings(), Ledger()
    frozen = plant.workers[0]
    name = plant.name_of(frozen)
    client = Client(plant, ledger)
    with Recorder(plant) as recorder:
        caught = _freeze_at_work(plant, client, frozen, name)
        entries = ledger.accepted
        overtaken = eventually(
            lambda: all(len(recorder.ends(e.job_id)) == 1 for e in entries), (START_AGAIN_S + END_S) * scale.patience
        )
        frozen.thaw()
        late = eventually(lambda: _late(frozen, caught), END_S * scale.patience)
        load = Load(plant, recorder, ledger)
        again = [client.submit(entry.body) for entry in entries]
        eventually(lambda: load.ended(again), END_S * scale.patience)
        documents = {entry.job_id: document for entry, document in zip(entries, load.documents(entries), strict=True)}
        apart = max_distance([*documents.values(), *load.documents(again)], [e.body for e in (*entries, *again)])
    holders = _holders(plant, caught)
    findings.at_least("jobs in the chunk of the frozen worker", 1, len(caught))
    findings.holds("the other worker ends all of them meanwhile", "yes", "yes" if overtaken else "no", overtaken)
    findings.equal("jobs that succeeded", len(entries), sum(d["status"] == "succeeded" for d in documents.values()))
    refused = sum(_too_late(frozen.log, job_id) for job_id in caught)
    findings.holds("late results that were refused or dropped", f"{len(caught)}, in the worker's log", refused, late)
    findings.equal("frozen jobs whose record still names the frozen worker", 0, holders.count(name))
    findings.equal(
        "frozen jobs that ended on attempt 2", len(caught), sum(documents[j]["attempt"] == 2 for j in caught)
    )
    twice = sum(len(recorder.ends(entry.job_id)) > 1 for entry in entries)
    findings.equal("jobs with two ends", 0, twice)
    findings.at_most("their numbers lie apart from those of the same jobs run again", TOLERANCE, apart)
    client.hang_up()
    return findings


def _freeze_at_work(plant: Plant, client: Client, worker: Process, name: str) -> list[str]:
    """Submit jobs until the worker is caught in the middle of a chunk of them; the chunk's jobs."""
    with plant.redis() as redis:
        for _ in range(TRIES):
            for number in range(8):
                client.submit(middling(number))
            eventually(lambda: redis.exists(f"lensd:executing:{name}"), 5)
            plant.freeze(worker)
            chunk = cast("bytes | None", redis.get(f"lensd:executing:{name}")) or b""
            jobs = [part.partition(":")[0] for part in chunk.decode().split()]
            running = [job for job in jobs if redis.hget(f"lensd:job:{job}", "status") == b"running"]
            if running:
                return running
            worker.thaw()
    raise AssertionError(f"{worker.name} was never caught at work")


def _late(worker: Process, jobs: list[str]) -> bool:
    log = worker.log
    return all(_too_late(log, job_id) for job_id in jobs)


def _too_late(log: str, job_id: str) -> bool:
    return any(f"{job_id}: {what}, too late" in log for what in ("Succeeded", "dropped"))


def _holders(plant: Plant, jobs: list[str]) -> list[str]:
    with plant.redis() as redis:
        return [(redis.hget(f"lensd:job:{job_id}", "worker") or b"").decode() for job_id in jobs]


DRILL = Drill("frozen", "a worker frozen past its lease in the middle of a chunk, then let go", run, workers=2)
