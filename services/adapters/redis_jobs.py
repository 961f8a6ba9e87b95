"""The job store in Redis or Valkey: every transition one Lua script on the server's own clock."""

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import cast

import orjson
from redis import Redis

from services.adapters.lua_scripts import Argument, LuaScripts
from services.adapters.redis_client import store_errors
from services.adapters.redis_cursor import read_cursor, write_cursor
from services.adapters.redis_records import (
    MALFORMED,
    RECORD_FIELDS,
    SUMMARY_FIELDS,
    claim_of,
    flat_hash,
    hashes,
    head_of,
    limits_argument,
    microseconds,
    moment,
    packed_tokens,
    policy_argument,
    record_of,
    record_or_none,
    reservation_key,
    too_much,
)
from services.contracts.errors import Conflict, ErrorCode, Unavailable
from services.contracts.generation import NewTokens
from services.contracts.job import JobProgress, JobStatus, JobSummary
from services.jobs.idempotency import just_forgotten, key_reused
from services.jobs.ids import is_batch_id
from services.jobs.limits import batch_closed, queue_share_filled, quota_exceeded, too_many_jobs
from services.jobs.policy import JobPolicy
from services.jobs.ports import NOBODY, JobFilter, Page, Reaped
from services.jobs.record import (
    Beat,
    Cancelled,
    Claim,
    Ending,
    Failed,
    Idempotency,
    JobRecord,
    NewJob,
    Size,
    Stop,
    Succeeded,
)

_log = logging.getLogger(__name__)

EXECUTING_KEPT_S = 24 * 3600
LOOKED_AT_ONCE = 200
LOOKED_AT_PER_PAGE = 2_000

_WHY_FULL = {
    b"queue": "too many jobs are waiting already: try again later",
    b"batch": "half of the queue is taken, and the rest is kept for the priority `interactive`: try again later",
    b"memory": "the job store's memory is nearly full: try again later, or delete jobs that are no longer needed",
}


class RedisJobStore:
    """Implements `services.jobs.ports.JobStore`; the keys are listed in `lua/job_prelude.lua`."""

    def __init__(self, client: Redis, policy: JobPolicy) -> None:
        self._client = client
        self._scripts = LuaScripts(client, prelude="job_prelude")
        self._size_of = policy.size_of
        self._roomy_memory = policy.roomy_memory
        self._policy = policy_argument(policy)

    def create(self, job: NewJob, idempotency: Idempotency | None = None) -> JobRecord:
        deadline_s = job.spec.deadline_s
        answer = self._scripts.run(
            "create",
            self._policy,
            job.id,
            job.owner,
            job.pool,
            job.spec.priority,
            self._size_of(job.cost),
            head_of(job),
            job.spec.model_dump_json(),
            job.inputs.model_dump_json(),
            "" if deadline_s is None else microseconds(deadline_s),
            reservation_key(job.owner, idempotency),
            "" if idempotency is None else idempotency.request_sha256,
            job.cost,
            limits_argument(job.limits),
            job.ties.model_dump_json(exclude_none=True),
        )
        match answer:
            case [b"created", created_at]:
                return job.queued(moment(created_at))
            case [b"replayed", job_id]:
                record = self.get(job_id.decode())
                if record is None:
                    raise just_forgotten()
                return record
            case [b"conflict"]:
                raise key_reused()
            case [b"closed"]:
                raise batch_closed(job.ties.batch or "")
            case [b"limited", b"jobs", living]:
                raise too_many_jobs(living)
            case [b"limited", b"queue", share]:
                raise queue_share_filled(share)
            case [b"limited", b"kept" | b"bytes", *kept]:
                raise too_much(*kept)
            case [b"limited", b"work", charged, resets_in]:
                bound = job.limits.daily_token_layers or 0
                raise quota_exceeded(job.cost, charged, bound, timedelta(microseconds=int(resets_in)))
        raise Unavailable(ErrorCode.QUEUE_FULL, _WHY_FULL[answer[1]], retry_after_s=10)

    def get(self, job_id: str) -> JobRecord | None:
        return self.get_many([job_id])[0]

    def get_many(self, job_ids: Sequence[str]) -> Sequence[JobRecord | None]:
        return self._read(job_ids, RECORD_FIELDS)

    def queued_ahead(self, job_id: str) -> int | None:
        ahead = self._scripts.run("ahead", self._policy, job_id)
        return None if ahead is None else int(ahead)

    def list(self, owner: str, where: JobFilter, cursor: str | None, limit: int) -> Page:
        at_once = limit + 1 if where == JobFilter() else LOOKED_AT_ONCE
        before = None if cursor is None else read_cursor(cursor)
        found: list[tuple[int, JobSummary]] = []
        for _ in range(0, LOOKED_AT_PER_PAGE, at_once):
            places = self._older_than(owner, before, at_once)
            records = self._read([job_id for job_id, _ in places], SUMMARY_FIELDS)
            for (_, created), record in zip(places, records, strict=True):
                if record is not None and where.admits(record):
                    found.append((created, record.summary()))
            if len(found) > limit:
                return _page(found[:limit], found[limit - 1][0])
            if len(places) < at_once:
                return _page(found, None)
            before = places[-1][1]
        return _page(found, before)

    def claim(
        self, pool: str, worker: str, sizes: Sequence[Size], without: Mapping[Size, Collection[str]] = NOBODY
    ) -> Claim | None:
        owners = orjson.dumps({size.value: dict.fromkeys(without.get(size, ()), True) for size in Size})
        while (answer := self._scripts.run("claim", self._policy, pool, worker, owners, *sizes)) is not None:
            job_id = answer[0].decode()
            if len(answer) == 1:
                _log.error("quarantined the malformed record of %s", job_id)
                continue
            try:
                return claim_of(job_id, flat_hash(answer[1]), worker)
            except MALFORMED as damage:
                # The error itself may quote what the job computes on, which is not for logs.
                _log.error("quarantined the malformed record of %s: %s", job_id, type(damage).__name__)
                self._scripts.run("quarantine", self._policy, job_id)
        return None

    def executing(self, worker: str, claims: Sequence[Claim]) -> None:
        key = f"lensd:executing:{worker}"
        with store_errors():
            if claims:
                chunk = " ".join(f"{claim.job.id}:{claim.attempt}" for claim in claims)
                self._client.set(key, f" {chunk} ", ex=EXECUTING_KEPT_S)
            else:
                self._client.delete(key)

    def heartbeat(self, claims: Sequence[Claim]) -> Mapping[str, Beat]:
        arguments = [part for claim in claims for part in (claim.job.id, claim.worker, claim.attempt)]
        beats = self._scripts.run("heartbeat", self._policy, *arguments)
        return {claim.job.id: _beat(beat.decode()) for claim, beat in zip(claims, beats, strict=True)}

    def progress(self, claim: Claim, progress: JobProgress, tokens: Sequence[NewTokens] = ()) -> None:
        news = packed_tokens(tokens) if tokens else b""
        self._scripts.run(
            "progress", self._policy, claim.job.id, claim.worker, claim.attempt, progress.done, progress.planned, news
        )

    def finish(
        self, claim: Claim, ending: Ending, progress: JobProgress | None = None, bill: int | None = None
    ) -> bool:
        last_word = () if progress is None else ("done", progress.done, "planned", progress.planned)
        words = (*_outcome(ending, bill), *last_word)
        return bool(self._scripts.run("finish", self._policy, claim.job.id, claim.worker, claim.attempt, *words))

    def release(self, claim: Claim) -> None:
        self._scripts.run("release", self._policy, claim.job.id, claim.worker, claim.attempt)

    def cancel(self, job_id: str) -> JobRecord | None:
        self._scripts.run("cancel", self._policy, job_id)
        return self.get(job_id)

    def delete(self, job_id: str) -> JobRecord | None:
        answer = self._scripts.run("delete", self._policy, job_id)
        if answer is None:
            return None
        if answer == b"running":
            raise Conflict(ErrorCode.JOB_RUNNING, f"{job_id} is running: cancel it, then delete it")
        return record_of(job_id, flat_hash(answer))

    def reap(self) -> Reaped:
        answer = self._scripts.run("reap", self._policy)
        if answer is None:
            return Reaped()
        handed_back, ended, forgotten, unclaimed, sweep, damaged = answer
        for job_id in damaged:
            _log.error("quarantined the malformed record of %s", job_id.decode())
        return Reaped(
            handed_back=tuple(job_id.decode() for job_id in handed_back),
            ended=tuple(job_id.decode() for job_id in ended),
            forgotten=tuple(job_id.decode() for job_id in forgotten),
            unclaimed={unclaimed[i].decode(): unclaimed[i + 1] for i in range(0, len(unclaimed), 2)},
            sweep=bool(sweep),
        )

    def known(self, job_ids: Collection[str]) -> frozenset[str]:
        ids = list(job_ids)
        with store_errors():
            pipeline = self._client.pipeline(transaction=False)
            for job_id in ids:
                names = ("batch",) if is_batch_id(job_id) else ("job", "arriving")
                pipeline.exists(*(f"lensd:{name}:{job_id}" for name in names))
            return frozenset(job_id for job_id, exists in zip(ids, pipeline.execute(), strict=True) if exists)

    def depth(self, pool: str) -> int:
        with store_errors():
            return self._client.zcard(f"lensd:queued:{pool}")

    def roomy(self) -> bool:
        with store_errors():
            memory = self._client.info("memory")
        return bool(memory["used_memory"] < self._roomy_memory * memory["maxmemory"])

    def ping(self) -> None:
        with store_errors():
            self._client.ping()

    def _read(self, job_ids: Sequence[str], fields: Sequence[str]) -> Sequence[JobRecord | None]:
        with store_errors():
            pipeline = self._client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hmget(f"lensd:job:{job_id}", fields)
            found = hashes(pipeline.execute(raise_on_error=False), fields)
            return [record_or_none(job_id, values) for job_id, values in zip(job_ids, found, strict=True)]

    def _older_than(self, owner: str, created: int | None, count: int) -> Sequence[tuple[str, int]]:
        """The owner's jobs created before, newest first, each with its creation."""
        newest = "+inf" if created is None else f"({created}"
        with store_errors():
            answer = self._client.zrange(
                f"lensd:owner:{owner}", newest, "-inf", desc=True, byscore=True, withscores=True, offset=0, num=count
            )
        return [(job_id.decode(), int(score)) for job_id, score in cast("list[tuple[bytes, float]]", answer)]


def _page(found: Sequence[tuple[int, JobSummary]], last: int | None) -> Page:
    cursor = None if last is None else write_cursor(last)
    return Page(jobs=tuple(summary for _, summary in found), cursor=cursor)


def _outcome(ending: Ending, bill: int | None) -> Sequence[Argument]:
    """An ending as the script reads it: status, what it cost, and what is to be set."""
    cost = "" if bill is None else bill
    match ending:
        case Succeeded(result, fingerprint):
            computed = () if fingerprint is None else ("fingerprint", fingerprint)
            return JobStatus.SUCCEEDED, cost, "result", result.model_dump_json(), *computed
        case Failed(error):
            return JobStatus.FAILED, cost, "error", error.model_dump_json()
        case Cancelled():
            return JobStatus.CANCELLED, cost


def _beat(answer: str) -> Beat:
    return Beat(held=answer != "lost", stop=Stop(answer) if answer in list(Stop) else None)
