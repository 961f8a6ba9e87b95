"""Who is alive: one key per worker that expires by itself."""

from collections.abc import Sequence
from typing import cast

import orjson
from redis import Redis

from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_client import store_errors
from services.jobs.ports import WorkerState


class RedisWorkers:
    """Implements `services.jobs.ports.WorkerRegistry`; `lensd:workers` is the set of names to look for."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._scripts = LuaScripts(client)

    def announce(self, state: WorkerState, ttl_s: float) -> None:
        self._scripts.run("announce", state.worker, orjson.dumps(state), round(ttl_s * 1_000))

    def retire(self, worker: str) -> None:
        with store_errors():
            self._client.delete(f"lensd:worker:{worker}")
            self._client.srem("lensd:workers", worker)

    def alive(self) -> Sequence[WorkerState]:
        with store_errors():
            workers = sorted(name.decode() for name in cast("set[bytes]", self._client.smembers("lensd:workers")))
            if not workers:
                return []
            found = cast("list[bytes | None]", self._client.mget([f"lensd:worker:{name}" for name in workers]))
            if dead := [name for name, state in zip(workers, found, strict=True) if state is None]:
                self._client.srem("lensd:workers", *dead)
        return [WorkerState(**orjson.loads(state)) for state in found if state is not None]
