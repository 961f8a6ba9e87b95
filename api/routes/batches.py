"""Batches: thousands of jobs as one upload, followed and cancelled as one, their results one file."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from api.auth import Reader, Submitter
from api.batches import BatchId, find_batch, no_batch, result_lines, view_of
from api.dependencies import GatewayServices, Services
from api.documented import body, content, lines_body, problems
from api.errors import InvalidParameters, ProblemItem
from api.idempotency import REPLAYED, IdempotencyKey, upload_idempotency
from api.limits import LINES
from api.routes.examples import BATCH
from services.batches.forgetting import forget_batch
from services.batches.record import Batch, NewBatch, Phase
from services.batches.upload import count_lines
from services.contracts.base import WebhookId
from services.contracts.batch import MAX_LINES, BatchList, BatchView, OnInvalid
from services.contracts.errors import Conflict, ErrorCode, InvalidSpec, Refused, Unavailable, Violation
from services.jobs.ids import new_batch_id, new_blob_key
from services.jobs.record import Idempotency
from services.tenants.keys import ApiKey
from services.webhooks.store import not_to_be_told

router = APIRouter(prefix="/v1/batches", tags=["batches"])

POLL_AFTER_S = 2

_EXAMPLE = "".join(orjson.dumps(line).decode() + "\n" for line in BATCH)
_HEADERS = {
    "Location": {"description": "Where the batch is.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds after which to look again.", "schema": {"type": "integer"}},
    REPLAYED: {
        "description": "`true` when the same request under the same `Idempotency-Key` had made this batch before.",
        "schema": {"type": "string"},
    },
}


class BatchQuery(BaseModel):
    """What is to be done with an upload."""

    model_config = ConfigDict(extra="forbid")

    on_invalid: Annotated[
        OnInvalid,
        Field(description="`refuse`: a wrong line fails the whole batch. `report`: the others run all the same."),
    ] = "refuse"
    label: Annotated[str | None, Field(max_length=200)] = None
    webhook: Annotated[
        WebhookId | None, Field(description="The endpoint that is told when the batch has ended, one of your own.")
    ] = None


class BatchListQuery(BaseModel):
    """Which of the caller's batches to list."""

    model_config = ConfigDict(extra="forbid")

    cursor: Annotated[str | None, Field(max_length=500, description="As the previous page gave it.")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


After = Annotated[int, Query(ge=0, le=MAX_LINES, description="How many lines of the results the client has already.")]


@router.post(
    "",
    operation_id="submit_batch",
    status_code=202,
    response_class=Response,
    responses={
        202: {**body("BatchView", "The upload is stored; `Location` is where its batch is."), "headers": _HEADERS},
        **problems(400, 413, 415, 422),
    },
    openapi_extra=lines_body("BatchLine", _EXAMPLE),
)
async def submit_batch(
    request: Request,
    services: Services,
    key: Submitter,
    query: Annotated[BatchQuery, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Post up to 10,000 jobs, one a line. All lines are validated before the first runs; they yield to single jobs."""
    upload = await request.body()
    if query.webhook is not None:
        await run_in_threadpool(_check_webhook, services, key.owner, query.webhook)
    batch, reservation = await services.read(lambda: _read(upload, key, query, idempotency_key))
    stored = await run_in_threadpool(_store, services, batch, upload, reservation)
    replayed = {} if stored.id == batch.id else {REPLAYED: "true"}
    headers = {"Location": f"/v1/batches/{stored.id}", "Retry-After": str(POLL_AFTER_S), **replayed}
    return JSONResponse(view_of(stored).model_dump(mode="json"), 202, headers)


@router.get("", operation_id="list_batches", responses=problems(422))
def list_batches(services: Services, key: Reader, query: Annotated[BatchListQuery, Query()]) -> BatchList:
    """The caller's batches, newest first."""
    try:
        page = services.batches.list(key.owner, query.cursor, query.limit)
    except Refused as error:
        raise InvalidParameters((ProblemItem(parameter="cursor", code=error.code, message=error.message),)) from error
    return BatchList(batches=tuple(view_of(batch) for batch in page.batches), cursor=page.cursor)


@router.get("/{batch_id}", operation_id="get_batch", responses=problems(404, 422))
def get_batch(services: Services, key: Reader, batch_id: BatchId) -> BatchView:
    """A batch: its status, and how many of its lines are where."""
    return view_of(find_batch(services, key, batch_id))


@router.post("/{batch_id}/cancel", operation_id="cancel_batch", responses=problems(404, 422))
def cancel_batch(services: Services, key: Submitter, batch_id: BatchId) -> BatchView:
    """Cancel a batch: no further line runs, and its jobs are cancelled. One that has ended is left as it is."""
    find_batch(services, key, batch_id)
    cancelled = services.batches.cancel(batch_id)
    if cancelled is None:
        raise no_batch(batch_id)
    return view_of(cancelled)


@router.delete("/{batch_id}", operation_id="delete_batch", status_code=204, responses=problems(404, 409, 422))
def delete_batch(services: Services, key: Submitter, batch_id: BatchId) -> None:
    """Forget a batch with all its jobs and results. One that has not ended must be cancelled first."""
    batch = find_batch(services, key, batch_id)
    if not batch.phase.terminal:
        message = f"{batch.id} is {batch.phase}: cancel it, and delete it when it has ended"
        raise Conflict(ErrorCode.BATCH_UNFINISHED, message)
    forget_batch(batch, services.batches, services.blobs)


@router.get(
    "/{batch_id}/results",
    operation_id="get_batch_results",
    response_class=Response,
    responses={
        200: content(
            LINES,
            {"type": "string", "format": "binary"},
            "A LineResult for each line of the upload, in its order, without the first `after` lines. While the batch "
            "runs, the file ends before the first line that has not ended: ask for the rest with `after`.",
        ),
        **problems(404, 422),
    },
)
def get_batch_results(services: Services, key: Reader, batch_id: BatchId, after: After = 0) -> Response:
    """What became of the lines, one JSON document each."""
    batch = find_batch(services, key, batch_id)
    return StreamingResponse(result_lines(services, batch, after), media_type=LINES)


def _check_webhook(services: GatewayServices, owner: str, endpoint_id: str) -> None:
    """Raises InvalidParameters for an endpoint that the owner may not name."""
    if (wrong := not_to_be_told(services.webhooks, owner, endpoint_id)) is not None:
        raise InvalidParameters((ProblemItem(parameter="webhook", code=wrong.code, message=wrong.message),))


def _read(
    upload: bytes, key: ApiKey, query: BatchQuery, idempotency_key: str | None
) -> tuple[NewBatch, Idempotency | None]:
    """Everything about an upload that takes computing; raises InvalidSpec for too few or too many lines."""
    batch = NewBatch(
        id=new_batch_id(),
        key=key.model_copy(update={"secret_sha256": "", "retiring": None}),
        on_invalid=query.on_invalid,
        label=query.label,
        webhook=query.webhook,
        lines=_count(upload),
    )
    return batch, upload_idempotency(idempotency_key, upload, query.on_invalid, query.label, query.webhook)


def _count(upload: bytes) -> int:
    """How many lines there are; raises InvalidSpec for none or too many."""
    lines = count_lines(upload)
    if not 1 <= lines <= MAX_LINES:
        message = f"the body has {lines:,} lines: send 1 to {MAX_LINES:,}"
        raise InvalidSpec([Violation("", ErrorCode.INVALID_REQUEST, message)])
    return lines


def _store(services: GatewayServices, batch: NewBatch, upload: bytes, reservation: Idempotency | None) -> Batch:
    """Note the batch, store its upload, let the keepers have it; a repeated request makes up for a crash between."""
    noted = services.batches.create(batch, services.max_batches, reservation)
    if noted.phase is not Phase.UPLOADING:
        return noted
    blob = new_blob_key(noted.id, 0)
    try:
        services.blobs.put(blob, upload)
    except Unavailable:
        services.batches.abandon(noted.id)
        raise
    opened = services.batches.open(noted.id, blob)
    if opened is None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the batch was just forgotten: send it again")
    return opened
