"""A client's memory of what it was told: which job each Idempotency-Key got, and how that ended."""

import http.client
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.jobs import Body
from tests.chaos.plant import Plant

CONNECT_S = 5.0
ANSWER_S = 30.0
LONGEST_PAUSE_S = 0.5
IDLE_S = 3.0
"""After which a connection is not used again: the gateway closes idle ones soon."""
NO_ANSWER = (OSError, http.client.HTTPException, json.JSONDecodeError)
"""What a client meets while a gateway dies: refused, reset, cut off in the middle."""


@dataclass
class Entry:
    """One thing that the client wanted done."""

    key: str
    body: Body
    job_ids: set[str] = field(default_factory=set)
    """What it was told over all its tries; more than one is a broken promise."""
    replays: int = 0

    @property
    def job_id(self) -> str:
        (job_id,) = self.job_ids
        return job_id


@dataclass
class Ledger:
    """All entries, and what else the gateway answered, by status; written by many threads."""

    entries: list[Entry] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    without_retry_after: int = 0
    unexpected: list[str] = field(default_factory=list)
    cut_off: int = 0
    """Requests that got no whole answer."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def accepted(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.job_ids]

    @property
    def torn(self) -> list[Entry]:
        """Entries that got two jobs."""
        return [entry for entry in self.entries if len(entry.job_ids) > 1]


class Client:
    """One thread's connection to the gateway; it tries again, under the same key, until it is told a job."""

    def __init__(self, plant: Plant, ledger: Ledger) -> None:
        self._plant = plant
        self._ledger = ledger
        self._connection: http.client.HTTPConnection | None = None
        self._used_at = 0.0

    def request(
        self, method: str, path: str, body: Body | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, Any]:
        """Status, headers and JSON; raises one of NO_ANSWER."""
        if time.monotonic() - self._used_at > IDLE_S:
            self.hang_up()
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._plant.port, timeout=ANSWER_S)
        try:
            content = {"Content-Type": "application/json"} if body is not None else {}
            text = None if body is None else json.dumps(body)
            self._connection.request(method, path, text, {**self._plant.headers, **content, **(headers or {})})
            answer = self._connection.getresponse()
            raw = answer.read()
            self._used_at = time.monotonic()
            return answer.status, answer.headers, json.loads(raw) if raw else None
        except NO_ANSWER:
            self.hang_up()
            raise

    def submit(self, body: Body, within_s: float = 120, again: bool = False) -> Entry:
        """Post until accepted; `again` posts once more under the same key, as a client that lost the answer would."""
        entry = Entry(key=uuid.uuid4().hex, body=body)
        with self._ledger.lock:
            self._ledger.entries.append(entry)
        for _ in range(2 if again else 1):
            self._post(entry, time.monotonic() + within_s)
        return entry

    def ask(self, path: str, within_s: float = 120) -> Any:
        """The JSON of a GET, asked again while the gateway or its store is away."""
        give_up_at = time.monotonic() + within_s
        while time.monotonic() < give_up_at:
            try:
                status, _, document = self.request("GET", path)
            except NO_ANSWER:
                time.sleep(0.1)
                continue
            if status != 503:
                return document
            time.sleep(LONGEST_PAUSE_S)
        raise AssertionError(f"{path} was not answered in {within_s:.0f} s")

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, entry: Entry, give_up_at: float) -> None:
        ledger = self._ledger
        while time.monotonic() < give_up_at:
            try:
                status, headers, document = self.request("POST", "/v1/jobs", entry.body, {"Idempotency-Key": entry.key})
            except NO_ANSWER:
                with ledger.lock:
                    ledger.cut_off += 1
                time.sleep(0.1)
                continue
            with ledger.lock:
                ledger.answers[status] += 1
                if status in (200, 202):
                    entry.job_ids.add(document["id"])
                    entry.replays += headers.get("Idempotency-Replayed") == "true"
                elif status == 503:
                    ledger.without_retry_after += "Retry-After" not in headers
                else:
                    ledger.unexpected.append(f"{status}: {json.dumps(document)[:300]}")
            if status != 503:
                return
            time.sleep(min(LONGEST_PAUSE_S, float(headers.get("Retry-After", "1"))))
