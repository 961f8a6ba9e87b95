"""No room for blobs, and blobs deleted behind the product's back.

The folder of blobs becomes a file system of its own, small enough to fill (tmpfs); where mounting is not allowed, the
worker may write no file as large as a blob (RLIMIT_FSIZE): the one gives ENOSPC, the other EFBIG.
"""

import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.jobs import external, small
from tests.chaos.ledger import Client, Entry, Ledger
from tests.chaos.load import Load
from tests.chaos.plant import Plant
from tests.chaos.recorder import Recorder
from tests.processes import eventually

ROOM_BYTES = 400_000
"""For three blobs of 123 kB."""
JOBS = 8
END_S = 300.0
SERVES_S = 30.0
"""A worker may be loading another model just now."""


def run(plant: Plant, _scale: Scale) -> Findings:
    findings = Findings()
    with Recorder(plant) as recorder:
        load = Load(plant, recorder, Ledger())
        client = Client(plant, load.ledger)
        (plant.home / "blobs").mkdir(exist_ok=True)
        with _little_room(plant) as how:
            _fill(plant, load, client, findings, how)
        _lose(plant, load, client, findings)
        client.hang_up()
    findings.equal("unexpected errors in the gateway's log", 0, plant.gateway.log.count("unexpected error"))
    alive = eventually(lambda: all(worker.alive and plant.serves(worker) for worker in plant.workers), SERVES_S)
    findings.holds("the worker serves on", "yes", "yes" if alive else "no", alive)
    return findings


def _fill(plant: Plant, load: Load, client: Client, findings: Findings, how: str) -> None:
    large = [client.submit(external()) for _ in range(JOBS)]
    beside = [client.submit(small(number)) for number in range(JOBS)]
    documents = _ended(load, large)
    failed = [document for document in documents if document["status"] == "failed"]
    codes = {document["error"]["code"] for document in failed}
    findings.at_least(f"jobs whose blob found no room ({how})", 1, len(failed))
    findings.equal("what they say", {"store_unavailable"}, codes)
    findings.equal("they and those that found room", JOBS, len(failed) + _succeeded(documents))
    findings.equal("small jobs beside them that succeed", JOBS, _succeeded(_ended(load, beside)))
    leftovers = list((plant.home / "blobs").rglob("*.tmp"))
    findings.equal("unfinished files left behind", 0, len(leftovers))
    findings.note(f"a job without room says: {failed[0]['error']['message'] if failed else 'nothing'}")
    for entry in large:
        client.request("DELETE", f"/v1/jobs/{entry.job_id}")
    if how == "ENOSPC":
        findings.equal(
            "a job after those were deleted", "succeeded", _ended(load, [client.submit(external())])[0]["status"]
        )


def _lose(plant: Plant, load: Load, client: Client, findings: Findings) -> None:
    lost, kept = client.submit(external()), client.submit(external())
    documents = _ended(load, [lost, kept])
    names = [tensor["href"] for tensor in _external(documents[0])]
    for path in (plant.home / "blobs" / lost.job_id).rglob("*"):
        if path.is_file():
            path.unlink()
    seen = [client.request("GET", href)[0] for href in (f"/v1/jobs/{lost.job_id}/result", *names)]
    as_npz = client.request("GET", f"/v1/jobs/{lost.job_id}/result", headers={"Accept": "application/x-npz"})[0]
    findings.equal("a tensor whose blob was deleted answers", {410}, {*seen[1:], as_npz})
    findings.equal(
        "the job itself and a list answer",
        [200, 200],
        [client.request("GET", path)[0] for path in (f"/v1/jobs/{lost.job_id}", "/v1/jobs")],
    )
    findings.equal("another job's result answers", 200, client.request("GET", f"/v1/jobs/{kept.job_id}/result")[0])
    findings.equal("deleting the job answers", 204, client.request("DELETE", f"/v1/jobs/{lost.job_id}")[0])


def _external(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("encoding") == "external":
            return [node]
        return [found for child in node.values() for found in _external(child)]
    return [found for child in node for found in _external(child)] if isinstance(node, list) else []


def _ended(load: Load, entries: Sequence[Entry]) -> list[Any]:
    eventually(lambda: load.ended(entries), END_S)
    return load.documents(entries)


def _succeeded(documents: Sequence[Any]) -> int:
    return sum(document["status"] == "succeeded" for document in documents)


@contextmanager
def _little_room(plant: Plant) -> Iterator[str]:
    """What a write that finds no room then fails with."""
    folder = plant.home / "blobs"
    if _mount(folder):
        try:
            yield "ENOSPC"
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    workers = [psutil.Process(worker.pid) for worker in plant.workers]
    logs = max(len(worker.log.encode()) for worker in plant.workers)
    for process in workers:
        process.rlimit(resource.RLIMIT_FSIZE, (logs + 64 * 1024, resource.RLIM_INFINITY))
    try:
        yield "EFBIG"
    finally:
        for process in workers:
            process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _mount(folder: Path) -> bool:
    options = ["-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "lensd-drill", str(folder)]
    try:
        return subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


DRILL = Drill("disk", "no room for blobs, and a blob deleted behind the product's back", run)
