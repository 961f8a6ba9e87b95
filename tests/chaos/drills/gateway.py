"""The gateway killed -9 while clients submit; every one of them posts each job twice under one Idempotency-Key."""

import time

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.load import under_load
from tests.chaos.plant import Plant


def run(plant: Plant, scale: Scale) -> Findings:
    findings = Findings()
    # Half of the jobs: each is posted twice, and for a good part of the time nobody answers.
    with under_load(plant, scale.jobs // 2, scale.pace / 2, again=True, long=False) as load:
        for _ in range(scale.kills):
            time.sleep(scale.between_kills_s)
            plant.gateway.kill()
            plant.start_gateway()
    load.judge(findings)
    entries = load.ledger.accepted
    replayed = sum(entry.replays > 0 for entry in entries)
    findings.equal("repeated posts that were told the job they had made", len(entries), replayed)
    findings.at_least("requests cut off by a kill", 1, load.ledger.cut_off)
    findings.note(f"{scale.kills} kills; answers: {dict(load.ledger.answers)}")
    return findings


DRILL = Drill("gateway", "the gateway killed -9 while clients submit, each job twice under its Idempotency-Key", run)
