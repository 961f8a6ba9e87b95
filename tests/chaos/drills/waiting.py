"""Many clients that wait at once in one gateway process, most by `Prefer: wait`, some by events; and orders to cancel.

The jobs are queued while no worker runs, so that all clients are there before the first job ends.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from redis import Redis

from tests.chaos.drill import Drill, Findings, Scale
from tests.chaos.jobs import gradients, small, sweep
from tests.chaos.ledger import Client, Ledger
from tests.chaos.load import TOLERANCE, Load, max_distance
from tests.chaos.plant import Plant
from tests.chaos.recorder import Recorder
from tests.chaos.wire import Wire, many
from tests.processes import eventually

JOBS = 20
ONE_IN = 20
"""Of the clients, one in so many follows the events."""
ANSWER_S = 3.0
CANCEL_S = 1.0
CANCELS = 5
END_S = 300.0
SHARED_LAYERS = 12
"""Of a sweep that shares its chunks: some seconds of work."""
STEPS, MANY_STEPS = 8, 200
"""Of integrated gradients: one batch, and a dozen."""


def run(plant: Plant, scale: Scale) -> Findings:
    findings, ledger = Findings(), Ledger()
    client = Client(plant, ledger)
    for worker in plant.workers:
        worker.end()
    with Recorder(plant) as recorder:
        jobs = [client.submit(small(number)).job_id for number in range(JOBS)]
        _wait(plant, recorder, jobs, scale, findings)
        _cancel_queued(plant, client, recorder, scale, findings)
        _cancel_running(plant, client, recorder, scale, findings)
        _cancel_one_of_two(plant, client, recorder, scale, findings)
        _cancel_gradients(plant, client, recorder, scale, findings)
    client.hang_up()
    return findings


def _wait(plant: Plant, recorder: Recorder, jobs: Sequence[str], scale: Scale, findings: Findings) -> None:
    count, before = scale.waiting, plant.gateway.rss_bytes()
    answered, held, readers = asyncio.run(_together(plant, jobs, count))
    seconds = sorted(at - recorder.ends(job_id)[0].at for job_id, at in answered if recorder.ends(job_id))
    findings.equal("clients that waited and got the end of their job", count, len(seconds))
    findings.equal("readers of the stream of events in the gateway", 1, readers)
    slowest = seconds[int(0.99 * len(seconds))] if seconds else float("inf")
    findings.at_most("the answer comes after the job's end, 99th percentile", ANSWER_S * scale.patience, slowest, " s")
    median = seconds[len(seconds) // 2] if seconds else float("inf")
    each = (held - before) / count / 1e3
    findings.note(
        f"{count} clients at once for {len(jobs)} jobs: {median * 1e3:.0f} ms at the median, {slowest * 1e3:.0f} ms at "
        f"the 99th percentile; the gateway {before / 1e6:.0f} MB before, {held / 1e6:.0f} MB while they waited "
        f"({each:.0f} kB each)"
    )


async def _together(plant: Plant, jobs: Sequence[str], count: int) -> tuple[list[tuple[str, float]], int, int]:
    """Each client's job and when it was told of its end; the gateway's memory and stream readers while all waited."""
    answered: list[tuple[str, float]] = []
    waiting = 0
    held = readers = 0

    async def client(number: int) -> None:
        nonlocal waiting
        job_id = jobs[number % len(jobs)]
        wire = await Wire.open(plant)
        if number % ONE_IN == 0:
            await wire.send("GET", f"/v1/jobs/{job_id}/events")
            waiting += 1
            answered.append((job_id, await wire.until(b"event: succeeded")))
        else:
            await wire.send("GET", f"/v1/jobs/{job_id}", "Prefer: wait=60")
            waiting += 1
            answer = await wire.answer()
            if answer.status == 200 and answer.document["status"] == "succeeded":
                answered.append((job_id, answer.at))
        wire.vanish(reset=False)

    async def start_when_all_wait() -> None:
        nonlocal held, readers
        while waiting < count:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)
        held = plant.gateway.rss_bytes()
        with plant.redis() as redis:
            readers = _stream_readers(redis)
        await asyncio.to_thread(plant.start_workers)

    starting = asyncio.create_task(start_when_all_wait())
    await many(count, count, client)
    await starting
    return answered, held, readers


def _stream_readers(redis: Redis) -> int:
    """Connections that wait for the stream, the recorder's own left out."""
    return sum(entry["cmd"] == "xread" for entry in redis.client_list()) - 1


def _cancel_queued(plant: Plant, client: Client, recorder: Recorder, scale: Scale, findings: Findings) -> None:
    with plant.frozen_workers():
        job_id = client.submit(small(0)).job_id
        seconds = _cancelled_after(client, recorder, job_id)
    findings.at_most("a queued job is cancelled within", CANCEL_S * scale.patience, seconds, " s")


def _cancel_running(plant: Plant, client: Client, recorder: Recorder, scale: Scale, findings: Findings) -> None:
    """Again and again in the middle of a sweep; the small job after it gives the numbers of the one before."""
    load = Load(plant, recorder, Ledger())
    entries, seconds = [client.submit(small(1))], []
    for _ in range(CANCELS):
        job_id = client.submit(sweep()).job_id
        eventually(partial(_run, recorder, job_id), END_S)
        seconds.append(_cancelled_after(client, recorder, job_id))
        entries.append(client.submit(small(1)))
    eventually(lambda: load.ended(entries), END_S)
    apart = max_distance(load.documents(entries), [entry.body for entry in entries])
    findings.at_most(
        f"a running sweep is cancelled within, slowest of {CANCELS}", CANCEL_S * scale.patience, max(seconds), " s"
    )
    findings.at_most("the next job's numbers lie apart from those before", TOLERANCE, apart)
    findings.note("cancelling a running sweep took " + _milliseconds(seconds))


def _cancel_one_of_two(plant: Plant, client: Client, recorder: Recorder, scale: Scale, findings: Findings) -> None:
    """Of two sweeps whose rows share every chunk, and so run on; the other's numbers are those that it gets alone."""
    load = Load(plant, recorder, Ledger())
    entries, seconds = [client.submit(sweep(layers=SHARED_LAYERS, first=1))], []
    eventually(lambda: load.ended(entries), END_S)
    for _ in range(CANCELS):
        job_id = client.submit(sweep(layers=SHARED_LAYERS)).job_id
        entries.append(client.submit(sweep(layers=SHARED_LAYERS, first=1)))
        eventually(partial(_run, recorder, job_id, entries[-1].job_id), END_S)
        seconds.append(_cancelled_after(client, recorder, job_id))
        eventually(lambda: load.ended(entries), END_S)
    documents = load.documents(entries)
    succeeded = sum(document["status"] == "succeeded" for document in documents)
    findings.at_most(
        f"one of two jobs that share chunks is cancelled within, slowest of {CANCELS}",
        CANCEL_S * scale.patience,
        max(seconds),
        " s",
    )
    findings.equal("of those that it shared them with succeed", len(entries), succeeded)
    apart = max_distance(documents, [entry.body for entry in entries])
    findings.at_most("their numbers lie apart from those without it", TOLERANCE, apart)
    findings.note("cancelling one of two that share chunks took " + _milliseconds(seconds))


def _cancel_gradients(plant: Plant, client: Client, recorder: Recorder, scale: Scale, findings: Findings) -> None:
    """In the middle of forward and backward passes; a short job of the same kind comes before and after."""
    load = Load(plant, recorder, Ledger())
    entries, seconds = [client.submit(gradients(steps=STEPS))], []
    for _ in range(CANCELS):
        job_id = client.submit(gradients(steps=MANY_STEPS)).job_id
        eventually(partial(_run, recorder, job_id), END_S)
        seconds.append(_cancelled_after(client, recorder, job_id))
        entries.append(client.submit(gradients(steps=STEPS)))
    eventually(lambda: load.ended(entries), END_S)
    apart = max_distance(load.documents(entries), [entry.body for entry in entries])
    findings.at_most(
        f"running gradients are cancelled within, slowest of {CANCELS}", CANCEL_S * scale.patience, max(seconds), " s"
    )
    findings.at_most("the next gradients lie apart from those before", TOLERANCE, apart)
    findings.note("cancelling running gradients took " + _milliseconds(seconds))


def _milliseconds(seconds: Sequence[float]) -> str:
    return ", ".join(f"{s * 1e3:.0f}" for s in seconds) + " ms"


def _run(recorder: Recorder, *job_ids: str) -> bool:
    """Whether all of them have come some way."""
    return all(any(each.status == "running" and each.done for each in recorder.of(job_id)) for job_id in job_ids)


def _cancelled_after(client: Client, recorder: Recorder, job_id: str) -> float:
    began = time.monotonic()
    client.request("POST", f"/v1/jobs/{job_id}/cancel")
    ended = eventually(lambda: recorder.ends(job_id), 30)
    seconds = time.monotonic() - began
    return seconds if ended and recorder.ends(job_id)[0].status == "cancelled" else float("inf")


DRILL = Drill("waiting", "many clients wait at once in one gateway process; jobs are cancelled", run)
