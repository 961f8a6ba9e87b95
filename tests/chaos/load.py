"""Small jobs at a steady pace and a long sweep beside them while something dies, and whether all of them end well."""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.chaos.drill import Findings
from tests.chaos.jobs import small, sweep
from tests.chaos.ledger import Client, Entry, Ledger
from tests.chaos.plant import Plant
from tests.chaos.recorder import Recorder
from tests.processes import eventually

CLIENTS = 8
SETTLE_S = 400.0
TOLERANCE = 1e-4
"""How far the numbers of the same job may lie apart, as README promises for any batch."""


@dataclass
class Load:
    """What was submitted, and what came of it."""

    plant: Plant
    recorder: Recorder
    ledger: Ledger = field(default_factory=Ledger)
    sweep: Entry | None = None
    all_submitted: bool = False
    all_ended: bool = False
    """Whether every accepted job ended in the time that was left to it."""

    @property
    def small(self) -> list[Entry]:
        return [entry for entry in self.ledger.entries if entry is not self.sweep]

    def submit(self, jobs: int, pace: float, *, again: bool = False) -> None:
        """`jobs` small jobs, `pace` a second, from several clients."""
        began = time.monotonic()

        def share(first: int) -> None:
            client = Client(self.plant, self.ledger)
            for number in range(first, jobs, CLIENTS):
                time.sleep(max(0.0, began + number / pace - time.monotonic()))
                client.submit(small(number), again=again)
            client.hang_up()

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(share, range(CLIENTS)))
        self.all_submitted = True

    def all_small_ended(self) -> bool:
        return self.all_submitted and self.ended(self.small)

    def submit_sweep(self, beside: int) -> None:
        """A sweep that lasts about as long as `beside` small jobs do at their pace."""
        client = Client(self.plant, self.ledger)
        self.sweep = client.submit(sweep(pairs=6) if beside > 500 else sweep(layers=6))
        client.hang_up()

    def ended(self, entries: Sequence[Entry]) -> bool:
        return all(self.recorder.ends(entry.job_id) for entry in entries if entry.job_ids)

    def documents(self, entries: Sequence[Entry]) -> list[Any]:
        """The jobs as a client gets them, results included."""

        def share(part: Sequence[Entry]) -> list[Any]:
            client = Client(self.plant, self.ledger)
            found = [client.ask(f"/v1/jobs/{entry.job_id}") for entry in part]
            client.hang_up()
            return found

        parts = [entries[first::CLIENTS] for first in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(share, parts))
        return [answers[number % CLIENTS][number // CLIENTS] for number in range(len(entries))]

    def judge(self, findings: Findings) -> None:
        """What must hold of any load, whatever died."""
        self._judge_small(findings)
        lost = [entry for entry in self.ledger.accepted if not self.recorder.ends(entry.job_id)]
        twice = [entry for entry in self.ledger.accepted if len(self.recorder.ends(entry.job_id)) > 1]
        findings.equal("accepted jobs lost", 0, len(lost))
        findings.equal("jobs with two ends", 0, len(twice))
        findings.equal("Idempotency-Keys with two jobs", 0, len(self.ledger.torn))
        findings.equal("answers other than 200, 202 and 503", 0, len(self.ledger.unexpected))
        if self.sweep is not None:
            self._judge_sweep(findings, self.sweep)
        if self.ledger.unexpected:
            findings.note(f"the first unexpected answer: {self.ledger.unexpected[0]}")

    def _judge_small(self, findings: Findings) -> None:
        jobs, accepted = self.small, [entry for entry in self.small if entry.job_ids]
        documents = self.documents(accepted)
        statuses = Counter(document.get("status", document.get("code")) for document in documents)
        findings.holds("all that was accepted ends", "yes", "yes" if self.all_ended else "no", self.all_ended)
        findings.equal("small jobs accepted", len(jobs), len(accepted))
        findings.equal("small jobs that succeeded, with their result", len(jobs), sum(map(_whole, documents)))
        if statuses.keys() - {"succeeded"}:
            findings.note(f"the small jobs ended {dict(statuses)}: {_first_error(documents)}")
        apart = max_distance(documents, [entry.body for entry in accepted])
        findings.at_most("the same job's numbers lie apart", TOLERANCE, apart)
        attempts = Counter(document.get("attempt") for document in documents)
        more = {attempt: count for attempt, count in sorted(attempts.items()) if attempt and attempt > 1}
        findings.note(f"small jobs by their number of attempts, where more than one: {more or 'none'}")

    def _judge_sweep(self, findings: Findings, entry: Entry) -> None:
        (document,) = self.documents([entry])
        how = document["status"] if document["error"] is None else document["error"]["code"]
        seen = f"{how} after {document['attempt']} attempts"
        findings.holds("the long sweep ends", "succeeded or worker_lost", seen, how in ("succeeded", "worker_lost"))


@contextmanager
def under_load(plant: Plant, jobs: int, pace: float, *, again: bool = False, long: bool = True) -> Iterator[Load]:
    """The load runs beside the block; when it is left, all was submitted, and all has ended or never will."""
    with Recorder(plant) as recorder:
        load = Load(plant, recorder)
        if long:
            load.submit_sweep(jobs)
        submitting = threading.Thread(target=lambda: load.submit(jobs, pace, again=again), name="submit")
        submitting.start()
        try:
            yield load
        finally:
            submitting.join()
            load.all_ended = eventually(lambda: load.ended(load.ledger.accepted), SETTLE_S)


def until(seconds: float, over: Callable[[], bool]) -> bool:
    """Wait `seconds`, less when it is `over`; whether it is not."""
    return not eventually(over, seconds)


def max_distance(documents: Sequence[Any], bodies: Sequence[Any]) -> float:
    """How far the results of equal bodies lie apart at most, in the metric's units; infinite if none are equal."""
    by_body: defaultdict[str, list[Any]] = defaultdict(list)
    for document, body in zip(documents, bodies, strict=True):
        if _whole(document):
            by_body[json.dumps(body)].append(_numbers(document["result"]))
    compared = [np.array(same) for same in by_body.values() if len(same) > 1 and same[0]]
    return max((float(np.ptp(same, axis=0).max()) for same in compared), default=float("inf"))


def _numbers(node: Any) -> list[float]:
    """Every inline value of a result, in its order."""
    if isinstance(node, dict):
        if node.get("encoding") == "inline":
            return [0.0 if value is None else float(value) for value in node["values"]]
        return [number for child in node.values() for number in _numbers(child)]
    return [number for child in node for number in _numbers(child)] if isinstance(node, list) else []


def _whole(document: Any) -> bool:
    return document.get("status") == "succeeded" and bool(document.get("result"))


def _first_error(documents: Sequence[Any]) -> str:
    return next((json.dumps(d.get("error") or d)[:300] for d in documents if not _whole(d)), "")
