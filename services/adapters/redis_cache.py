"""The result cache in Redis or Valkey: what is found and what is answered are one script each.

Entries are made as jobs finish and dropped as jobs are forgotten: see `lua/job_prelude.lua`.
"""

from redis import Redis

from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_jobs import RedisJobStore
from services.adapters.redis_records import (
    flat_hash,
    head_of,
    microseconds,
    policy_argument,
    record_of,
    reservation_key,
)
from services.jobs.idempotency import key_reused
from services.jobs.policy import JobPolicy
from services.jobs.record import Idempotency, JobRecord, NewJob, StoredResult

COPYING_S = 600.0
"""How long it may take to copy a result, and for a job to be made after all when that comes to nothing."""


class RedisResultCache:
    """Implements `services.jobs.cache.ResultCache`."""

    def __init__(self, client: Redis, policy: JobPolicy) -> None:
        self._scripts = LuaScripts(client, prelude="job_prelude")
        self._store = RedisJobStore(client, policy)
        self._size_of = policy.size_of
        self._policy = policy_argument(policy)

    def find(self, job: NewJob, idempotency: Idempotency | None = None) -> JobRecord | None:
        source = self._scripts.run(
            "cache_find",
            self._policy,
            job.id,
            job.owner,
            job.ties.cache_entry or "",
            reservation_key(job.owner, idempotency),
            microseconds(COPYING_S),
        )
        return None if source is None else self._store.get(source.decode())

    def answer(
        self, job: NewJob, source: JobRecord, result: StoredResult, idempotency: Idempotency | None = None
    ) -> JobRecord | None:
        answer = self._scripts.run(
            "create_ended",
            self._policy,
            job.id,
            job.owner,
            job.pool,
            job.spec.priority,
            self._size_of(job.cost),
            head_of(job),
            job.ties.model_dump_json(exclude_none=True, exclude={"cache_entry"}),
            reservation_key(job.owner, idempotency),
            "" if idempotency is None else idempotency.request_sha256,
            job.ties.cache_entry or "",
            source.id,
            result.model_dump_json(),
        )
        if answer is None:
            return None
        if answer == b"conflict":
            raise key_reused()
        job_id, fields = answer
        return record_of(job_id.decode(), flat_hash(fields))
