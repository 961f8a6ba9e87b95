"""Valkey killed -9 and started again, several times, under small jobs and a long sweep.

While it is away a client asks the gateway for a job and submits one, again and again; afterwards the drill measures how
long the gateway, which nobody touches, takes to answer again.
"""

import time
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.jobs import small
from tests.chaos.ledger import NO_ANSWER, Client, Ledger
from tests.chaos.load import Load, under_load
from tests.chaos.plant import Plant
from tests.processes import eventually

OUTAGE_S = 2.0
LONG_OUTAGE_S = 18.0
"""Longer than a lease."""
RECOVER_S = 5.0


@dataclass
class Outages:
    """What was answered while the store was away, and the seconds until it was answered as before."""

    answers: Counter[int] = field(default_factory=Counter)
    without_retry_after: int = 0
    no_answer: int = 0
    recovery_s: list[float] = field(default_factory=list)


def run(plant: Plant, scale: Scale) -> Findings:
    findings, outages = Findings(), Outages()
    gateway, workers = plant.gateway.pid, [worker.pid for worker in plant.workers]
    with under_load(plant, scale.jobs, scale.pace) as load:
        for number in range(scale.kills):
            time.sleep(scale.between_kills_s)
            last_of_many = number == scale.kills - 1 > 1
            _outage(plant, outages, LONG_OUTAGE_S if last_of_many else OUTAGE_S)
    load.judge(findings)
    away = outages.answers
    findings.equal("answers during outages other than 503", 0, sum(n for status, n in away.items() if status != 503))
    findings.at_least("answers of 503 during outages", scale.kills, away[503])
    without = outages.without_retry_after + load.ledger.without_retry_after
    findings.equal("of all 503, those without Retry-After", 0, without)
    findings.equal("requests during outages without an answer", 0, outages.no_answer)
    findings.at_most("the gateway answers again after", RECOVER_S * scale.patience, max(outages.recovery_s), " s")
    same = plant.gateway.alive and gateway == plant.gateway.pid and _workers(plant) == workers
    findings.holds("gateway and workers are the processes they were", "yes", "yes" if same else "no", same)
    findings.note(f"{scale.kills} kills; 503 to submitting clients: {_submitting(load)}")
    return findings


def _outage(plant: Plant, outages: Outages, lasts_s: float) -> None:
    client = Client(plant, Ledger())
    plant.server.kill()
    back_at = time.monotonic() + lasts_s
    while time.monotonic() < back_at:
        _ask(client, outages)
        time.sleep(0.1)
    plant.start_server()
    began = time.monotonic()
    eventually(lambda: _answered(client), 60)
    outages.recovery_s.append(time.monotonic() - began)
    client.hang_up()


def _ask(client: Client, outages: Outages) -> None:
    for method, path, body in (("GET", "/v1/jobs", None), ("POST", "/v1/jobs", small(0))):
        try:
            status, headers, _ = client.request(method, path, body)
        except NO_ANSWER:
            outages.no_answer += 1
            continue
        outages.answers[status] += 1
        outages.without_retry_after += status == 503 and "Retry-After" not in headers


def _answered(client: Client) -> bool:
    try:
        return client.request("GET", "/v1/jobs")[0] == 200
    except NO_ANSWER:
        return False


def _workers(plant: Plant) -> list[int]:
    return [worker.pid for worker in plant.workers if worker.alive]


def _submitting(load: Load) -> int:
    return load.ledger.answers[503]


DRILL = Drill("store", "Valkey killed -9 and started again, under small jobs and a long sweep", run, workers=2)
