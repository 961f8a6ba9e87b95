"""Batches in Redis or Valkey; the keys are listed in `lua/job_prelude.lua`, and every change is one script."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import orjson
from redis import Redis

from services.adapters.lua_scripts import Argument, LuaScripts
from services.adapters.redis_client import store_errors
from services.adapters.redis_cursor import read_cursor, write_cursor
from services.adapters.redis_records import MALFORMED, flat_hash, microseconds, moment, policy_argument, too_much
from services.batches.record import (
    BATCH_DAMAGED,
    Batch,
    BatchPage,
    Checked,
    NewBatch,
    Phase,
    StoredLine,
    Turn,
    TurnLost,
)
from services.batches.store import (
    ABANDONED_S,
    LEASE_S,
    batch_over_quota,
    reused_key,
    too_many_batches,
    too_many_kept_batches,
)
from services.contracts.batch import MAX_SHOWN_ERRORS
from services.contracts.errors import ErrorCode, Unavailable
from services.contracts.job import JobError, JobStatus
from services.jobs.policy import JobPolicy
from services.jobs.record import Idempotency

_COUNTS = ("offset", "number", "checked", "invalid", "cost", "fed", "succeeded", "failed", "cancelled")
_TIMES = ("created_at", "started_at", "finished_at", "expires_at")

_log = logging.getLogger(__name__)


class RedisBatchStore:
    """Implements `services.batches.store.BatchStore`."""

    def __init__(self, client: Redis, policy: JobPolicy) -> None:
        self._client = client
        self._scripts = LuaScripts(client, prelude=("job_prelude", "batch_prelude"))
        own = {
            "keeper_lease": microseconds(LEASE_S),
            "abandoned": microseconds(ABANDONED_S),
            "shown_wrong_lines": MAX_SHOWN_ERRORS,
            "damaged_batch": BATCH_DAMAGED.model_dump_json(),
        }
        self._policy = orjson.dumps(orjson.loads(policy_argument(policy)) | own)

    def create(self, batch: NewBatch, open_at_most: int, idempotency: Idempotency | None = None) -> Batch:
        owner = batch.key.owner
        answer = self._run(
            "create",
            batch.id,
            owner,
            batch.model_dump_json(exclude={"id", "lines"}),
            batch.lines,
            open_at_most,
            "" if idempotency is None else _reservation(owner, idempotency.key),
            "" if idempotency is None else idempotency.request_sha256,
        )
        match answer:
            case [b"conflict"]:
                raise reused_key()
            case [b"limited", b"unfinished", unfinished]:
                raise too_many_batches(unfinished)
            case [b"limited", b"batches", kept]:
                raise too_many_kept_batches(kept)
            case [b"limited", _, *kept]:
                raise too_much(*kept)
            case [b"full"]:
                message = "the store's memory is nearly full: try again later, or delete batches no longer needed"
                raise Unavailable(ErrorCode.QUEUE_FULL, message, retry_after_s=10)
        created = self.get(answer[1].decode() if answer[0] == b"replayed" else batch.id)
        if created is None:
            raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the batch was just forgotten: try again")
        return created

    def open(self, batch_id: str, blob: str) -> Batch | None:
        self._run("open", batch_id, blob)
        return self.get(batch_id)

    def abandon(self, batch_id: str) -> None:
        self._run("forget", batch_id, Phase.UPLOADING)

    def get(self, batch_id: str) -> Batch | None:
        return self._read([batch_id])[0]

    def list(self, owner: str, cursor: str | None, limit: int) -> BatchPage:
        newest = "+inf" if cursor is None else f"({read_cursor(cursor)}"
        with store_errors():
            answer = self._client.zrange(
                f"lensd:batches:{owner}",
                newest,
                "-inf",
                desc=True,
                byscore=True,
                withscores=True,
                offset=0,
                num=limit + 1,
            )
        places = cast("list[tuple[bytes, float]]", answer)
        batches = self._read([batch_id.decode() for batch_id, _ in places[:limit]])
        more = len(places) > limit
        return BatchPage(
            batches=tuple(batch for batch in batches if batch is not None),
            cursor=write_cursor(int(places[limit - 1][1])) if more else None,
        )

    def lines(self, batch_id: str, first: int, count: int) -> Sequence[StoredLine]:
        if count <= 0:
            return ()
        with store_errors():
            found = cast("list[bytes]", self._client.lrange(f"lensd:batch-lines:{batch_id}", first, first + count - 1))
        try:
            return tuple(StoredLine.model_validate_json(line) for line in found)
        except MALFORMED:
            self._quarantine(batch_id)
            return ()

    def deleted(self, batch_id: str, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        if not job_ids:
            return {}
        with store_errors():
            found = cast("list[bytes | None]", self._client.hmget(f"lensd:batch-deleted:{batch_id}", list(job_ids)))
        pairs = zip(job_ids, found, strict=True)
        return {job_id: JobStatus(status.decode()) for job_id, status in pairs if status is not None}

    def cancel(self, batch_id: str) -> Batch | None:
        self._run("cancel", batch_id)
        return self.get(batch_id)

    def forget_jobs(self, job_ids: Sequence[str]) -> None:
        self._run("forget_jobs", *job_ids)

    def forget(self, batch_id: str) -> None:
        self._run("forget", batch_id)

    def take(self) -> Turn | None:
        while (answer := self._run("take")) is not None:
            batch_id = answer[0].decode()
            if len(answer) > 1:
                _, fence, at, state = answer
                batch = _batch(batch_id, state)
                if batch is not None:
                    return Turn(batch, fence, moment(at))
            self._quarantine(batch_id)
        return None

    def put_back(self, turn: Turn, after_s: float) -> None:
        self._run("put_back", turn.batch.id, turn.fence, microseconds(after_s))

    def name(self, turn: Turn, names: Mapping[str, int]) -> Mapping[str, int]:
        if not names:
            return {}
        arguments = [part for name, number in names.items() for part in (name, number)]
        owners = self._fenced("name", turn, *arguments)
        pairs = zip(names.items(), owners, strict=True)
        return {name: int(owner) for (name, number), owner in pairs if int(owner) != number}

    def check(self, turn: Turn, checked: Checked) -> None:
        arguments: list[Argument] = [turn.batch.checked, checked.offset, checked.number, checked.cost]
        for line in checked.lines:
            arguments += (int(line.fault is not None), _line(line))
        self._fenced("check", turn, *arguments)

    def start(self, turn: Turn, daily_token_layers: int | None) -> None:
        answer = self._fenced("start", turn, "" if daily_token_layers is None else daily_token_layers)
        match answer:
            case [b"limited", cost, charged, resets_in]:
                resets = timedelta(microseconds=int(resets_in))
                raise batch_over_quota(int(cost), charged, daily_token_layers or 0, resets)

    def fail(self, turn: Turn, error: JobError) -> None:
        self._fenced("fail", turn, error.model_dump_json())

    def feed(self, turn: Turn, fed: int, wrong: Mapping[int, StoredLine]) -> None:
        arguments = [part for index, line in wrong.items() for part in (index, _line(line))]
        self._fenced("feed", turn, fed, *arguments)

    def stop(self, turn: Turn, error: JobError) -> None:
        self._fenced("cancel", turn, error.model_dump_json())

    def cancel_jobs(self, turn: Turn, at_most: int) -> None:
        self._fenced("cancel_jobs", turn, at_most)

    def _quarantine(self, batch_id: str) -> None:
        _log.error("quarantined the malformed record of %s", batch_id)
        self._run("quarantine", batch_id)

    def _run(self, name: str, *arguments: Argument) -> Any:
        return self._scripts.run(f"batch_{name}", self._policy, *arguments)

    def _fenced(self, name: str, turn: Turn, *arguments: Argument) -> Any:
        answer = self._run(name, turn.batch.id, turn.fence, *arguments)
        if not answer:
            raise TurnLost
        return answer

    def _read(self, batch_ids: Sequence[str]) -> Sequence[Batch | None]:
        if not batch_ids:
            return ()
        states = self._run("read", *batch_ids)
        return [_batch(batch_id, state) for batch_id, state in zip(batch_ids, states, strict=True)]


def _batch(batch_id: str, state: Sequence[Any] | None) -> Batch | None:
    """The record as a script read it; a malformed one is logged and counts as none."""
    if not state:
        return None
    fields, living, running, wrong = flat_hash(state[0]), *state[1:]
    try:
        return Batch(
            id=batch_id,
            phase=Phase(fields["status"].decode()),
            blob=fields["blob"].decode() if "blob" in fields else None,
            lines=int(fields["lines"]),
            living=living,
            running=running,
            error=JobError.model_validate_json(fields["error"]) if "error" in fields else None,
            wrong=tuple(StoredLine.model_validate_json(line) for line in wrong),
            **{name: int(fields[name]) for name in _COUNTS},
            **{name: moment(fields[name]) for name in _TIMES if name in fields},
            **orjson.loads(fields["head"]),
        )
    except MALFORMED as error:
        _log.error("the record of %s is malformed: %s", batch_id, type(error).__name__)
        return None


def _line(line: StoredLine) -> str:
    return line.model_dump_json(exclude_none=True)


def _reservation(owner: str, key: str) -> str:
    return f"lensd:batch-idempotency:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"
