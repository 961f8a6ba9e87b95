"""Doorbells and records of jobs and batches that lensd did not write, put into the store by hand among sound ones.

Records are damaged in line, while no worker can claim them: their fields overwritten, taken away, or the whole record
replaced by something that is no record at all. Batches are damaged while all their jobs wait. Last, commands for
Celery's remote control, which no worker takes.
"""

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import cast

from redis import Redis

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.jobs import small
from tests.chaos.ledger import Client, Entry, Ledger
from tests.chaos.load import Load
from tests.chaos.plant import Plant
from tests.chaos.recorder import Recorder
from tests.processes import eventually
from tests.remote_control import WITNESS, ping_and_shut_down

END_S = 300.0
TOLD_S = 60.0
"""The line is written once the record is out of the way, by a process that may be short of time."""
QUEUE = "lensd.default"


def _message(**changes: object) -> bytes:
    body = base64.b64encode(json.dumps([[], {"pool": "default"}, {}]).encode()).decode()
    properties = {
        "delivery_tag": "t",
        "delivery_info": {"routing_key": QUEUE, "exchange": ""},
        "body_encoding": "base64",
    }
    message = {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "lensd.ring", "id": "x", "lang": "py"},
        "properties": properties,
    }
    return json.dumps(message | changes).encode()


DOORBELLS: Sequence[bytes] = (
    b"not json",
    b"\xff\xfe",
    b"{}",
    b"[1, 2]",
    b"5",
    b"null",
    b"[" * 50_000,
    b'{"properties": 5, "body": "x"}',
    _message(body="%%%"),
    _message(body=base64.b64encode(b"no json").decode()),
    _message(headers=None),
    _message(headers={"task": "os.system", "id": "x"}),
    _message(headers={"task": "lensd.ring", "id": "x", "timelimit": 5}),
    _message(headers={"task": "lensd.ring"}),
    _message(**{"content-type": "application/x-python-serialize"}),
    _message(properties={"delivery_tag": ["t"], "delivery_info": {}, "body_encoding": "base64"}),
)


def _set(**fields: str) -> Callable[[Redis, str], object]:
    ((name, value),) = fields.items()
    return lambda redis, job_id: redis.hset(f"lensd:job:{job_id}", name, value)


def _without(field: str) -> Callable[[Redis, str], object]:
    return lambda redis, job_id: redis.hdel(f"lensd:job:{job_id}", field)


def _replaced(redis: Redis, job_id: str) -> None:
    redis.delete(f"lensd:job:{job_id}")
    redis.set(f"lensd:job:{job_id}", "no record")


HARMLESS = "charge is a word"
DAMAGES: Sequence[tuple[str, Callable[[Redis, str], object]]] = (
    ("spec is no JSON", _set(spec="no json")),
    ("inputs are a list", _set(inputs="[]")),
    ("head is empty", _set(head="{}")),
    ("attempt is a word", _set(attempt="many")),
    ("deadline is a word", _set(deadline_at="soon")),
    ("created is a word", _set(created_at="yesterday")),
    (HARMLESS, _set(charged="much")),
    ("bound of running jobs is a word", _set(max_running="few")),
    ("status is a word", _set(status="resting")),
    ("version is a word", _set(version="last")),
    ("no owner", _without("owner")),
    ("no pool", _without("pool")),
    ("no head", _without("head")),
    ("a text in the record's place", _replaced),
    ("no record", lambda redis, job_id: redis.delete(f"lensd:job:{job_id}")),
)


BATCH_LINES = 5


def _batch_set(name: str, value: str) -> Callable[[Redis, str], object]:
    return lambda redis, batch_id: redis.hset(f"lensd:batch:{batch_id}", name, value)


def _batch_replaced(redis: Redis, batch_id: str) -> None:
    redis.delete(f"lensd:batch:{batch_id}")
    redis.set(f"lensd:batch:{batch_id}", "no record")


BATCH_DAMAGES: Sequence[tuple[str, Callable[[Redis, str], object]]] = (
    ("a count is a word", _batch_set("succeeded", "many")),
    ("head is empty", _batch_set("head", "{}")),
    ("a text in the record's place", _batch_replaced),
)


def run(plant: Plant, scale: Scale) -> Findings:
    findings = Findings()
    pids = [worker.pid for worker in plant.workers]
    with Recorder(plant) as recorder:
        load = Load(plant, recorder, Ledger())
        client = Client(plant, load.ledger)
        _ring(plant, load, client, findings)
        _damage(plant, load, client, findings)
        _damage_batches(plant, client, findings)
        client.hang_up()
    heard = ping_and_shut_down(plant.valkey.url)
    findings.equal("who answers Celery's remote control, but for a witness", [WITNESS], heard.answered)
    eventually(lambda: all(plant.serves(worker) for worker in plant.workers), TOLD_S)
    same = [worker.pid for worker in plant.workers if worker.alive and plant.serves(worker)] == pids
    findings.holds("the worker is the process it was, and serves", "yes", "yes" if same else "no", same)
    findings.equal("unexpected errors in the gateway's log", 0, plant.gateway.log.count("unexpected error"))
    del scale
    return findings


def _ring(plant: Plant, load: Load, client: Client, findings: Findings) -> None:
    """With every slot listening the Celery messages alone are malformed; so sound jobs are mixed in."""
    before = _lines(plant)
    entries = []
    with plant.redis() as redis:
        for number, doorbell in enumerate(DOORBELLS):
            redis.lpush(QUEUE, doorbell)
            entries.append(client.submit(small(number)))
        heard = eventually(lambda: redis.llen(QUEUE) == 0, END_S)
        # A sound ring may be under way; a message that nobody could put away would stay, and come again and again.
        eventually(lambda: redis.hlen("unacked") == 0, TOLD_S)
        unacked = redis.hlen("unacked")
    findings.holds(
        f"{len(DOORBELLS)} malformed doorbells are taken from the queue", "yes", "yes" if heard else "no", heard
    )
    findings.equal("of them still unacknowledged, to come again", 0, unacked)
    eventually(lambda: _lines(plant) - before >= len(DOORBELLS), TOLD_S)
    findings.at_least("lines in the log that say so", len(DOORBELLS), _lines(plant) - before)
    findings.equal("sound jobs among them that succeed", len(entries), _succeeded(load, entries))


def _damage(plant: Plant, load: Load, client: Client, findings: Findings) -> None:
    damaged, sound = [], []
    with plant.redis() as redis:
        with plant.frozen_workers():
            for number, (_, damage) in enumerate(DAMAGES):
                damaged.append(client.submit(small(number)))
                sound.append(client.submit(small(number)))
                damage(redis, damaged[-1].job_id)
        findings.equal("sound jobs among damaged records that succeed", len(sound), _succeeded(load, sound))
        eventually(lambda: not _left(redis, damaged), END_S)
        left = _left(redis, damaged)
        statuses = [_status(redis, entry.job_id) for entry in damaged]
    whys = [why for why, _ in DAMAGES]
    findings.equal("damaged records still in line or running", [], left)
    findings.note("what became of them: " + ", ".join(f"{why}: {s}" for why, s in zip(whys, statuses, strict=True)))

    def untold() -> list[str]:
        """Damages of which no log says that the record was put aside."""
        told = _quarantined(plant)
        return [why for why, entry in zip(whys, damaged, strict=True) if entry.job_id not in told]

    eventually(lambda: untold() == [HARMLESS], TOLD_S)
    findings.equal("of them without a line in the logs: the one that does no harm", [HARMLESS], untold())
    answers = {client.request("GET", f"/v1/jobs/{entry.job_id}")[0] for entry in damaged}
    findings.holds("asking for a damaged job answers", "200 or 404", sorted(answers), answers <= {200, 404})
    findings.equal("a list of jobs answers", 200, client.request("GET", "/v1/jobs?limit=100")[0])


def _damage_batches(plant: Plant, client: Client, findings: Findings) -> None:
    with plant.redis() as redis:
        with plant.frozen_workers():
            damaged = [_upload(plant) for _ in BATCH_DAMAGES]
            all_waiting = eventually(lambda: all(_waits(client, batch_id) for batch_id in damaged), TOLD_S)
            jobs = {batch_id: redis.smembers(f"lensd:batch-living:{batch_id}") for batch_id in damaged}
            places = f"lensd:batches-open:{cast('bytes', redis.hget(f'lensd:batch:{damaged[0]}', 'owner')).decode()}"
            for (_, damage), batch_id in zip(BATCH_DAMAGES, damaged, strict=True):
                damage(redis, batch_id)
            sound = _upload(plant)
            findings.equal(
                "batches that hold one of their owner's places", len(damaged), len(_held(redis, places, damaged))
            )
            eventually(lambda: not _held(redis, places, damaged), TOLD_S)
            findings.holds(
                "batches are damaged while all their jobs wait", "yes", "yes" if all_waiting else "no", all_waiting
            )
            findings.equal("of them once a keeper has met them", [], _held(redis, places, damaged))
        ended = eventually(lambda: client.ask(f"/v1/batches/{sound}")["status"] == "ended", END_S)
        findings.holds("a sound batch among them ends", "yes", "yes" if ended else "no", ended)
        made = [job_id.decode() for members in jobs.values() for job_id in cast("set[bytes]", members)]
        eventually(lambda: all(_status(redis, job_id) == "succeeded" for job_id in made), END_S)
        succeeded = sum(_status(redis, job_id) == "succeeded" for job_id in made)
        findings.equal("jobs of the damaged batches that succeed", len(damaged) * BATCH_LINES, succeeded)
    eventually(lambda: set(damaged) <= _quarantined(plant), TOLD_S)
    findings.equal("damaged batches without a line in the logs", [], sorted(set(damaged) - _quarantined(plant)))
    answers = [client.request("GET", f"/v1/batches/{batch_id}") for batch_id in damaged]
    statuses = {answer[0] for answer in answers}
    findings.holds("asking for a damaged batch answers", "200 or 404", sorted(statuses), statuses <= {200, 404})
    became = [answer[2]["status"] if answer[0] == 200 else "gone" for answer in answers]
    findings.note(
        "what became of batches: " + ", ".join(f"{why}: {s}" for (why, _), s in zip(BATCH_DAMAGES, became, strict=True))
    )


def _upload(plant: Plant) -> str:
    lines = [json.dumps({"custom_id": str(number), "job": small(number)}) for number in range(BATCH_LINES)]
    with plant.client() as http:
        answer = http.post("/v1/batches", content="\n".join(lines), headers={"Content-Type": "application/jsonl"})
    return str(answer.raise_for_status().json()["id"])


def _waits(client: Client, batch_id: str) -> bool:
    return bool(client.ask(f"/v1/batches/{batch_id}")["counts"]["queued"] == BATCH_LINES)


def _held(redis: Redis, places: str, batches: Sequence[str]) -> list[str]:
    """Batches that count as unfinished ones of their owner."""
    held = {member.decode() for member in cast("set[bytes]", redis.smembers(places))}
    return sorted(held & set(batches))


def _lines(plant: Plant) -> int:
    """Errors and warnings of all workers."""
    return sum(w.log.count(" ERROR ") + w.log.count(" WARNING ") + w.log.count(" CRITICAL ") for w in plant.workers)


def _quarantined(plant: Plant) -> set[str]:
    """Jobs and batches whose records the logs call quarantined: which process finds a damaged one is chance."""
    logs = (process.log for process in (plant.gateway, *plant.workers))
    return {found for log in logs for found in re.findall(r"quarantined the malformed record of (\w+)", log)}


def _succeeded(load: Load, entries: Sequence[Entry]) -> int:
    eventually(lambda: load.ended(entries), END_S)
    return sum(document["status"] == "succeeded" for document in load.documents(entries))


def _left(redis: Redis, entries: Sequence[Entry]) -> list[str]:
    """Jobs that some line, or the leases, still hold."""
    queues = [key for pattern in ("lensd:line:*", "lensd:queued:*", "lensd:leases") for key in redis.keys(pattern)]
    held = {member.decode() for queue in queues for member in cast("list[bytes]", redis.zrange(queue, 0, -1))}
    return sorted(entry.job_id for entry in entries if entry.job_id in held)


def _status(redis: Redis, job_id: str) -> str:
    kind = cast("bytes", redis.type(f"lensd:job:{job_id}")).decode()
    return (
        (cast("bytes | None", redis.hget(f"lensd:job:{job_id}", "status")) or b"?").decode() if kind == "hash" else kind
    )


DRILL = Drill("malformed", "doorbells and records that lensd did not write, put into the store by hand", run, workers=2)
