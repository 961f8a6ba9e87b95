"""Two workers, one killed -9 in turn, at least 5 s apart and only while both serve, under small jobs and a long sweep.

A worker takes seconds to start, more where cores are few. Killed every 5 s whether they serve or not, workers would die
while they start, with no job to lose. So a kill waits until both serve; the report says how far apart the kills were.
For every kill the drill looks which jobs ran on the dead worker, and when each of them was started again.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.load import Load, under_load, until
from tests.chaos.plant import Plant, Process

START_AGAIN_S = 20.0


@dataclass(frozen=True)
class Death:
    """A job whose worker was killed: `at` on the server's clock, `attempt` the one that died."""

    job_id: str
    attempt: int
    at: float


def run(plant: Plant, scale: Scale) -> Findings:
    findings = Findings()
    with under_load(plant, scale.jobs, scale.pace) as load:
        deaths, killed_at = _kill_in_turn(plant, load, scale.between_kills_s, scale.jobs / scale.pace)
    load.judge(findings)
    _judge_restarts(findings, load, deaths, START_AGAIN_S * scale.patience)
    findings.at_least("kills", scale.worker_kills, len(killed_at))
    if len(killed_at) > 1:
        apart = (killed_at[-1] - killed_at[0]) / (len(killed_at) - 1)
        findings.note(f"one kill every {apart:.1f} s: {scale.between_kills_s:g} s, then until both workers serve again")
    findings.note(f"{len(deaths)} attempts died with their worker")
    plant.wait_for_workers()
    return findings


def _kill_in_turn(plant: Plant, load: Load, every_s: float, lasts_s: float) -> tuple[list[Death], list[float]]:
    """Until all small jobs have ended, or twice as long as they should take: who died, and when each kill was."""
    deaths: list[Death] = []
    killed_at: list[float] = []
    give_up_at = time.monotonic() + 2 * lasts_s
    for worker in itertools.cycle(plant.workers):
        if not until(every_s, load.all_small_ended) or not _both_serve(plant, load, give_up_at):
            break
        deaths += _kill(plant, worker)
        killed_at.append(time.monotonic())
        worker.start()
    return deaths, killed_at


def _both_serve(plant: Plant, load: Load, give_up_at: float) -> bool:
    """Wait until all workers serve; False when there is nothing left to disturb, or time is up."""
    while not all(plant.serves(worker) for worker in plant.workers):
        if not until(0.2, load.all_small_ended) or time.monotonic() > give_up_at:
            return False
    return time.monotonic() < give_up_at


def _kill(plant: Plant, worker: Process) -> Sequence[Death]:
    """Kill it, and see which claims died with it: those of its name that are still running."""
    pid = worker.kill()
    with plant.redis() as redis:
        seconds, microseconds = redis.time()
        running = [job_id.decode() for job_id in redis.zrange("lensd:leases", 0, -1)]
        records = [redis.hmget(f"lensd:job:{job_id}", "worker", "attempt", "status") for job_id in running]
    return [
        Death(job_id, int(attempt), seconds + microseconds / 1e6)
        for job_id, (name, attempt, status) in zip(running, records, strict=True)
        if name and f"-{pid}-".encode() in name and status == b"running"
    ]


def _judge_restarts(findings: Findings, load: Load, deaths: Sequence[Death], within_s: float) -> None:
    """A job that was started again: how long after its worker's death; one that ended instead needs no start."""
    delays, never = [], 0
    for death in deaths:
        started = load.recorder.start_of(death.job_id, death.attempt + 1)
        if started is not None:
            delays.append(started - death.at)
        else:
            never += not load.recorder.ends(death.job_id)
    findings.equal("attempts that died and were neither started again nor ended", 0, never)
    findings.at_most("longest time until a dead attempt's job started again", within_s, max(delays, default=0), " s")


DRILL = Drill(
    "workers",
    "two workers, one killed -9 in turn, 5 s apart or once both serve again, under small jobs and a long sweep",
    run,
    workers=2,
)
