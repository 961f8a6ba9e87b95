"""How a job record lies in a Redis hash: JSON for what never changes, one small field for each thing that does."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from pydantic import TypeAdapter
from redis.exceptions import ResponseError

from services.contracts.errors import Limited
from services.contracts.generation import NewTokens
from services.contracts.inputs import Inputs
from services.contracts.job import JobError, JobProgress, JobSpec, JobStatus
from services.jobs.limits import OwnerLimits, too_many_kept, too_much_kept
from services.jobs.policy import JobPolicy
from services.jobs.record import (
    DEADLINE_EXCEEDED,
    RECORD_DAMAGED,
    WORKER_LOST,
    Claim,
    Idempotency,
    JobRecord,
    NewJob,
    Size,
    StoredResult,
)

Hash = Mapping[str, bytes]

RECORD_FIELDS = (
    "owner",
    "pool",
    "priority",
    "batch",
    "head",
    "status",
    "created_at",
    "deadline_at",
    "started_at",
    "finished_at",
    "expires_at",
    "attempt",
    "cancel_requested",
    "done",
    "planned",
    "error",
    "cached",
    "result",
    "fingerprint",
    "version",
)
"""All but what the job computes on."""

SUMMARY_FIELDS = tuple(field for field in RECORD_FIELDS if field not in {"result", "fingerprint"})

MALFORMED = (KeyError, TypeError, ValueError)
"""What reading a hash that lensd did not write may raise."""

KEPT_EVENTS = 64
KEPT_EVENTS_OF_ENDED = 8
KEPT_SHARED_EVENTS = 10_000

_log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
_TOKENS: TypeAdapter[tuple[NewTokens, ...]] = TypeAdapter(tuple[NewTokens, ...])


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def moment(value: bytes) -> datetime:
    """A time of the server's clock, in microseconds."""
    return _EPOCH + timedelta(microseconds=int(value))


def hash_of(fields: Sequence[str], values: Iterable[bytes | None]) -> Hash:
    """The answer to HMGET, without what is missing."""
    return {field: value for field, value in zip(fields, values, strict=True) if value is not None}


def hashes(answers: Iterable[Any], fields: Sequence[str]) -> Iterator[Hash]:
    """What answers to HMGET have of `fields`; nothing of what is no hash at all. Raises any other error."""
    for answer in answers:
        if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
            _log.error("what lies in a record's place is no record")
            yield {}
        elif isinstance(answer, Exception):
            raise answer
        else:
            yield hash_of(fields, answer)


def flat_hash(items: Sequence[bytes]) -> Hash:
    """The answer to HGETALL inside a script: field, value, field, value."""
    return {items[i].decode(): items[i + 1] for i in range(0, len(items), 2)}


def head_of(job: NewJob) -> bytes:
    """What a summary says of a job and never changes."""
    spec = job.spec
    return orjson.dumps({"kind": spec.kind, "model": spec.model, "label": spec.label, "metadata": spec.metadata})


def record_of(job_id: str, fields: Hash) -> JobRecord:
    """Raises one of MALFORMED on a hash that lensd did not write."""
    return JobRecord(
        id=job_id,
        owner=fields["owner"].decode(),
        pool=fields["pool"].decode(),
        priority=fields["priority"].decode(),
        batch=fields["batch"].decode() if "batch" in fields else None,
        cancel_requested="cancel_requested" in fields,
        created_at=moment(fields["created_at"]),
        deadline_at=_time(fields, "deadline_at"),
        result=StoredResult.model_validate_json(fields["result"]) if "result" in fields else None,
        fingerprint=fields["fingerprint"].decode() if "fingerprint" in fields else None,
        version=int(fields["version"]),
        **orjson.loads(fields["head"]),
        **state_of(fields),
    )


def record_or_none(job_id: str, fields: Hash) -> JobRecord | None:
    """The record, or None if there is none; a malformed one is logged and counts as none."""
    if not fields:
        return None
    try:
        return record_of(job_id, fields)
    except MALFORMED as error:
        _log.error("the record of %s is malformed: %s", job_id, type(error).__name__)
        return None


def state_of(fields: Hash) -> dict[str, Any]:
    """What changes while a job lives, by the names of JobRecord and JobSummary: all that an event says."""
    return {
        "status": JobStatus(fields["status"].decode()),
        "started_at": _time(fields, "started_at"),
        "finished_at": _time(fields, "finished_at"),
        "expires_at": _time(fields, "expires_at"),
        "attempt": int(fields["attempt"]),
        "progress": JobProgress(done=int(fields.get("done", 0)), planned=int(fields.get("planned", 0))),
        "error": JobError.model_validate_json(fields["error"]) if "error" in fields else None,
        "cached": "cached" in fields,
    }


def packed_tokens(tokens: Sequence[NewTokens]) -> bytes:
    """What was written between two beats, as it lies in the job's list of tokens."""
    return _TOKENS.dump_json(tuple(tokens))


def unpacked_tokens(batch: bytes) -> tuple[NewTokens, ...]:
    """Raises one of MALFORMED on what lensd did not write."""
    return _TOKENS.validate_json(batch)


def _time(fields: Hash, name: str) -> datetime | None:
    return moment(fields[name]) if name in fields else None


def claim_of(job_id: str, fields: Hash, worker: str) -> Claim:
    """Raises one of MALFORMED on a hash that lensd did not write."""
    return Claim(
        job=record_of(job_id, fields),
        spec=_SPEC.validate_json(fields["spec"]),
        inputs=Inputs.model_validate_json(fields["inputs"]),
        worker=worker,
        attempt=int(fields["attempt"]),
        size=Size(fields["size"].decode()),
        alone=int(fields.get("blamed", 0)) > 0,
    )


def reservation_key(owner: str, idempotency: Idempotency | None) -> str:
    """Where an idempotency key is reserved; '' without one."""
    if idempotency is None:
        return ""
    return f"lensd:idempotency:{owner}:{hashlib.sha256(idempotency.key.encode()).hexdigest()}"


def limits_argument(limits: OwnerLimits) -> bytes:
    """The limits as the script of creation reads them: what is no bound is left out."""
    return orjson.dumps({name: bound for name, bound in asdict(limits).items() if bound is not None})


def too_much(kept: int, share: int | None = None) -> Limited:
    """The refusal that `keeps_too_much` in the scripts tells: so many jobs are kept, or so many bytes of a share."""
    return too_many_kept(kept) if share is None else too_much_kept(kept, share)


def policy_argument(policy: JobPolicy) -> bytes:
    """The policy as the scripts read it."""
    return orjson.dumps(
        {
            "lease": microseconds(policy.lease_s),
            "retention": microseconds(policy.retention_s),
            "outage": microseconds(policy.outage_s),
            "reap_every": microseconds(policy.reap_every_s),
            "sweep_every": microseconds(policy.sweep_every_s),
            "ring_after": microseconds(policy.ring_after_s),
            "max_queued": policy.max_queued,
            "batch_share": policy.batch_share,
            "max_memory": policy.max_memory,
            "max_kept": policy.max_kept,
            "max_kept_share": policy.max_kept_share,
            "max_kept_batches": policy.max_kept_batches,
            "max_renewed": policy.max_renewed,
            "max_answers": policy.max_answers,
            "max_blamed": policy.max_blamed,
            "max_unexplained": policy.max_unexplained,
            "kept_events": KEPT_EVENTS,
            "kept_events_of_ended": KEPT_EVENTS_OF_ENDED,
            "kept_shared_events": KEPT_SHARED_EVENTS,
            "deadline_exceeded": DEADLINE_EXCEEDED.model_dump_json(),
            "worker_lost": WORKER_LOST.model_dump_json(),
            "damaged": RECORD_DAMAGED.model_dump_json(),
        }
    )
