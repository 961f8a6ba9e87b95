"""Small jobs of several owners that end together: methods at a worker's few desks, against all of them at once.

    python -m benchmarks.desks [--threads 2] [--jobs 28]

Both ways in turn, on the same engine, the ratio pair by pair; every job is of an owner of its own.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from benchmarks.laboratory import Laboratory
from benchmarks.load import PLACES, THINGS
from benchmarks.report import circumstances, table, write_section
from benchmarks.service import MODEL, Body, bodies
from services.methods.desks import DESKS, Desks

ROUNDS = 7


def seconds(laboratory: Laboratory, jobs: list[Body], desks: Desks) -> float:
    """All jobs at once, each in a thread of its own."""
    laboratory.desks = desks
    with ThreadPoolExecutor(len(jobs)) as threads:
        started = time.perf_counter()
        list(threads.map(laboratory.run, jobs))
        return time.perf_counter() - started


def of_one_length(count: int) -> list[Body]:
    """Jobs whose rows share one batch."""
    template, *_ = (job for job in bodies(2, seed=3) if job["kind"] == "attribution")
    prompts = (
        f"When John and Mary went to the {place}, John gave the {thing} to" for place in PLACES for thing in THINGS
    )
    return [
        template | {"examples": [template["examples"][0] | {"prompt": prompt}]} for prompt in islice(prompts, count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=28)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    laboratory = Laboratory(MODEL, given.threads)
    rows = []
    mixed = [job for job in bodies(2 * given.jobs, seed=3) if job["kind"] == "attribution"]
    for prompts, jobs in (("of 14 tokens", of_one_length(given.jobs)), ("of 10 to 30 tokens", mixed)):
        seconds(laboratory, jobs, Desks())
        pairs = [
            (seconds(laboratory, jobs, Desks()), seconds(laboratory, jobs, Desks(2 * given.jobs)))
            for _ in range(ROUNDS)
        ]
        few, all_at_once = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(slow / fast for fast, slow in pairs)
        rows.append((f"{given.jobs} prompts {prompts}", f"{few:.2f} s", f"{all_at_once:.2f} s", f"{ratio:.1f}×"))
    head = ("direct logit attribution, a job per prompt, all at once", f"{DESKS} desks", "as many as jobs", "faster")
    where = circumstances(
        f"python -m benchmarks.desks --threads {given.threads} --jobs {given.jobs}",
        given.threads,
        (before, os.getloadavg()[0]),
    )
    write_section("Desks", f"{table(head, rows)}\n\n{where}")


if __name__ == "__main__":
    main()
