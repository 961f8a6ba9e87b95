"""The short way from the gateway to an idle worker: one of its slots listens at the door.

A ring goes to a worker that listens, and is heard in a fraction of a millisecond; where none does it goes the long way,
as a Celery message. A worker that dies while it listens takes at most one ring with it, as one that dies with a message
does: the reaper rings again.

`lensd:listening:<pool>` is a sorted set of the workers that listen, by the time until which that holds;
`lensd:bell:<worker>` a list of the rings it has not heard yet.
"""

from typing import cast

from redis import Redis

from services.adapters.celery_doorbell import QUEUE_PREFIX
from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_client import store_errors
from services.contracts.errors import Unavailable
from services.jobs.ports import Doorbell

RING_KEPT_MS = 5_000
ENOUGH_WAITING = 256
"""Messages over this number say nothing new: each only wakes a slot, and the reaper rings again when they are heard."""


class RedisDoorbell:
    """Implements `services.jobs.ports.Doorbell`: `behind` rings for those who do not listen."""

    def __init__(self, client: Redis, behind: Doorbell) -> None:
        self._scripts = LuaScripts(client)
        self._behind = behind

    def ring(self, pool: str) -> None:
        try:
            # Counted in the same round trip: Celery's own way to ask costs more than a ring.
            waiting = int(self._scripts.run("ring", pool, RING_KEPT_MS, QUEUE_PREFIX + pool))
        except Unavailable:
            waiting = 0
        if 0 <= waiting < ENOUGH_WAITING:
            self._behind.ring(pool)

    def waiting(self, pool: str) -> int | None:
        return self._behind.waiting(pool)


class RedisDoorstep:
    """Implements `services.jobs.ports.Doorstep`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._scripts = LuaScripts(client)

    def listen(self, pool: str, worker: str, seconds: float) -> bool:
        # Known for longer than it waits: a ring between two calls is heard by the next.
        self._scripts.run("listen", pool, worker, round(2 * seconds * 1_000_000))
        with store_errors():
            return self._client.blpop([f"lensd:bell:{worker}"], timeout=seconds) is not None

    def leave(self, pool: str, worker: str) -> bool:
        with store_errors():
            pipeline = self._client.pipeline()
            pipeline.zrem(f"lensd:listening:{pool}", worker)
            pipeline.delete(f"lensd:bell:{worker}")
            return bool(cast("list[int]", pipeline.execute())[1])
