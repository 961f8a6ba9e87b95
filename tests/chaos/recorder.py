"""Everything that happened to every job, read from the store's own stream of events while it happens.

The stream is what gateways hand on to their clients. Each entry is the record as it was then: so a second end, a second
result or a step back would show here, whoever reads the record later.
"""

import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, cast

from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.plant import Plant

ENDED = ("succeeded", "failed", "cancelled")
READ_AT_ONCE = 1_000

_Entry = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True)
class Happening:
    """One event of a job; `at` in seconds of the server's clock."""

    at: float
    version: int
    status: str
    attempt: int
    started_at: float
    done: int


class Recorder:
    """Reads from the beginning of the stream until its block ends, outages included."""

    def __init__(self, plant: Plant) -> None:
        self._plant = plant
        self._last = b"0-0"
        self._jobs: defaultdict[str, list[Happening]] = defaultdict(list)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, name="recorder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def of(self, job_id: str) -> Sequence[Happening]:
        with self._lock:
            return tuple(self._jobs[job_id])

    def ends(self, job_id: str) -> Sequence[Happening]:
        return [happening for happening in self.of(job_id) if happening.status in ENDED]

    def start_of(self, job_id: str, attempt: int) -> float | None:
        """When an attempt began, in microseconds of the server's clock as events tell it, here in seconds."""
        return next((h.started_at for h in self.of(job_id) if h.attempt == attempt and h.started_at), None)

    def ended(self) -> int:
        """How many jobs have ended."""
        with self._lock:
            return sum(any(h.status in ENDED for h in happenings) for happenings in self._jobs.values())

    def _read(self) -> None:
        while not self._ending.is_set():
            try:
                with self._plant.redis() as redis:
                    self._follow(redis)
            except RedisError:
                self._ending.wait(0.1)

    def _follow(self, redis: Redis) -> None:
        while not self._ending.is_set():
            answer = redis.xread({"lensd:events": self._last}, count=READ_AT_ONCE, block=200)
            for _, entries in cast("list[tuple[bytes, list[_Entry]]]", answer):
                for entry, fields in entries:
                    self._last = entry
                    # A drill may have put nonsense into a record, and so into its events.
                    with self._lock, suppress(ValueError):
                        self._jobs[fields[b"job"].decode()].append(_happening(entry, fields))


def _happening(entry: bytes, fields: dict[bytes, bytes]) -> Happening:
    return Happening(
        at=int(entry.partition(b"-")[0]) / 1e3,
        version=int(fields[b"version"]),
        status=fields[b"status"].decode(),
        attempt=int(fields.get(b"attempt", b"0")),
        started_at=int(fields.get(b"started_at", b"0")) / 1e6,
        done=int(fields.get(b"done", b"0")),
    )
