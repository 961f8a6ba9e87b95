"""A batch as its owner sees it: finding it, what it says of itself, and its results as lines."""

from collections.abc import Iterator
from typing import Annotated, Any

import orjson
from fastapi import Path

from api.dependencies import GatewayServices
from api.violations import show
from services.batches.ids import job_id_of
from services.batches.record import Batch, Phase, StoredLine
from services.batches.store import BatchStore
from services.contracts.batch import BatchCounts, BatchStatus, BatchView, LineStatus, WrongLine
from services.contracts.errors import ErrorCode, NotFound
from services.contracts.webhook import BatchSummary
from services.jobs.ids import is_batch_id
from services.jobs.ports import Blobs
from services.jobs.record import JobRecord
from services.jobs.results import load_document
from services.tenants.keys import ApiKey

LINES_AT_ONCE = 100

Item = dict[str, Any]

BatchId = Annotated[str, Path(examples=["batch_abcdefghijklmnopqrstuvwxyz"])]

_DELETED = {"code": ErrorCode.RESULT_EXPIRED, "message": "the job of this line was deleted", "pointer": ""}


def find_batch(services: GatewayServices, key: ApiKey, batch_id: str) -> Batch:
    """The key owner's batch; raises NotFound(BATCH_NOT_FOUND) alike for none and for someone else's."""
    batch = services.batches.get(batch_id) if is_batch_id(batch_id) else None
    if batch is None or batch.owner != key.owner or batch.phase is Phase.UPLOADING:
        raise no_batch(batch_id)
    return batch


def no_batch(batch_id: str) -> NotFound:
    message = f"there is no batch {show(batch_id)}: it never was, or it has expired"
    return NotFound(ErrorCode.BATCH_NOT_FOUND, message)


def view_of(batch: Batch) -> BatchView:
    told = batch.invalid + batch.succeeded + batch.failed + batch.cancelled + batch.living
    return BatchView(
        id=batch.id,
        status=BatchStatus(batch.phase),
        label=batch.label,
        on_invalid=batch.on_invalid,
        webhook=batch.webhook,
        created_at=batch.created_at,
        started_at=batch.started_at,
        finished_at=batch.finished_at,
        expires_at=batch.expires_at,
        counts=BatchCounts(
            total=batch.lines,
            validated=batch.checked,
            waiting=max(0, batch.lines - told),
            queued=max(0, batch.living - batch.running),
            running=batch.running,
            invalid=batch.invalid,
            succeeded=batch.succeeded,
            failed=batch.failed,
            cancelled=batch.cancelled,
        ),
        token_layers=batch.cost,
        error=batch.error,
        errors=tuple(_wrong(line) for line in batch.wrong),
    )


def ended_batch(batches: BatchStore, batch_id: str) -> BatchSummary | None:
    """What a message says of the batch; None when it has not ended, or is gone. Raises Unavailable."""
    batch = batches.get(batch_id)
    if batch is None or batch.finished_at is None:
        return None
    view = view_of(batch)
    return BatchSummary(
        id=view.id, label=view.label, status=view.status, finished_at=batch.finished_at, counts=view.counts
    )


def result_lines(services: GatewayServices, batch: Batch, after: int) -> Iterator[bytes]:
    """A LineResult for each line from number `after` on, counted from 0, up to the first that has not ended."""
    for first in range(after, batch.lines, LINES_AT_ONCE):
        count = min(LINES_AT_ONCE, batch.lines - first)
        for item in _piece(services, batch, first, count):
            if item is None:
                return
            yield orjson.dumps(item) + b"\n"


def _piece(services: GatewayServices, batch: Batch, first: int, count: int) -> Iterator[Item | None]:
    """What became of `count` lines; None for one that has not ended."""
    lines = services.batches.lines(batch.id, first, count)
    if len(lines) < min(count, batch.checked - first):
        yield None  # The batch is forgotten.
    job_ids = [job_id_of(batch.id, first + index) for index in range(count)]
    records = services.store.get_many(job_ids)
    # Asked for last, so that a job deleted in between is found here.
    deleted = services.batches.deleted(batch.id, job_ids)
    for index, (job_id, record) in enumerate(zip(job_ids, records, strict=True)):
        item: Item = {"custom_id": None, "status": LineStatus.CANCELLED, "job_id": None, "result": None, "error": None}
        line = lines[index] if index < len(lines) else None
        if line is not None:
            item["custom_id"] = line.custom_id
        if line is not None and line.fault is not None:
            yield item | {"status": LineStatus.INVALID, "error": line.fault.model_dump()}
        elif record is not None:
            yield item | _ended(record, services.blobs) if record.status.terminal else None
        elif job_id in deleted:
            yield item | {"status": deleted[job_id], "job_id": job_id, "error": _DELETED}
        else:
            yield item if batch.phase.terminal else None


def _ended(record: JobRecord, blobs: Blobs) -> Item:
    fields: Item = {"status": record.status, "job_id": record.id}
    try:
        if record.result is not None:
            fields["result"] = orjson.Fragment(load_document(record, blobs))
    except NotFound as lost:
        fields["error"] = {"code": lost.code, "message": lost.message, "pointer": ""}
    if record.error is not None:
        fields["error"] = {"code": record.error.code, "message": record.error.message, "pointer": ""}
    return fields


def _wrong(line: StoredLine) -> WrongLine:
    assert line.fault is not None
    return WrongLine(**dict(line.fault), line=line.number, custom_id=line.custom_id)
