"""Posting jobs, following them, and letting them go."""

from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from api.auth import Reader, Submitter, still_valid
from api.bodies import BodyParser
from api.dependencies import GatewayServices, Services
from api.documented import body, event_stream, problems, request_body
from api.errors import InvalidParameters, ProblemItem
from api.events import ended_within, resume_point, stream
from api.idempotency import REPLAYED, IdempotencyKey, idempotency
from api.lookup import JobId, OwnJob, find_job, not_found
from api.preferences import Prefer, preference_applied, preferred_wait
from api.representations import job_json
from api.routes.examples import JOBS
from api.submission import admitted, submitted
from services.contracts.base import Contract
from services.contracts.errors import Refused, Unavailable
from services.contracts.job import JobSpec, JobStatus, JobSummary
from services.jobs.ports import JobFilter
from services.jobs.record import Idempotency, JobRecord, NewJob
from services.tenants.keys import ApiKey

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

POLL_AFTER_S = 1
"""What `Retry-After` proposes to a client that does not follow the events."""

_JOB_HEADERS = {
    "Location": {"description": "Where the job is.", "schema": {"type": "string"}},
    REPLAYED: {
        "description": "`true` when the same request under the same `Idempotency-Key` had made this job before.",
        "schema": {"type": "string"},
    },
}
_ACCEPTED_HEADERS = {
    **_JOB_HEADERS,
    "Retry-After": {"description": "Seconds after which to look again.", "schema": {"type": "integer"}},
}

_parser: BodyParser[JobSpec] = BodyParser(TypeAdapter(JobSpec))


class JobQuery(BaseModel):
    """Which of the caller's jobs to list."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = None
    kind: (
        Literal[
            "patching",
            "attribution",
            "features",
            "activations",
            "intervention",
            "logit_lens",
            "ablation",
            "attention",
            "sae_evaluation",
            "generation",
            "direction",
        ]
        | None
    ) = None
    label: Annotated[str | None, Field(max_length=200)] = None
    batch: Annotated[str | None, Field(max_length=40, description="The id of the batch that they belong to.")] = None
    cursor: Annotated[str | None, Field(max_length=500, description="As the previous page gave it.")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class JobList(Contract):
    """A page of jobs, newest first. Under a filter a page may be short, even empty, and still have a cursor."""

    jobs: tuple[JobSummary, ...]
    cursor: Annotated[str | None, Field(description="Ask for the next page with it; null on the last one.")]


@router.post(
    "",
    operation_id="submit_job",
    status_code=202,
    response_class=Response,
    responses={
        200: {
            **body(
                "JobView",
                "The job has ended: within the time of `Prefer: wait`, before it was sent again, or at once, when an "
                "earlier result answers it (`cached`).",
            ),
            "headers": _JOB_HEADERS,
        },
        202: {**body("JobView", "The job is accepted; `Location` is where it is."), "headers": _ACCEPTED_HEADERS},
        **problems(400, 413, 415, 422),
    },
    openapi_extra=request_body("JobSpec", JOBS),
)
async def submit_job(
    request: Request,
    services: Services,
    key: Submitter,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Post a job. What can be known to be wrong with it is refused at once, before it is queued."""
    raw = await request.body()
    job, reservation = await services.read(lambda: _read(raw, key, services, idempotency_key))
    record = await run_in_threadpool(submitted, job, services, reservation)
    request.state.job_id = record.id
    replayed = {} if record.id == job.id else {REPLAYED: "true"}
    wait = preferred_wait(prefer)
    record = await _settled(services, record, wait)
    headers = {"Location": f"/v1/jobs/{record.id}", **replayed, **preference_applied(wait)}
    if record.status.terminal:
        return await _answer(services, record, 200, headers)
    return await _answer(services, record, 202, {**headers, "Retry-After": str(POLL_AFTER_S)})


@router.get("", operation_id="list_jobs", responses=problems(422))
def list_jobs(services: Services, key: Reader, query: Annotated[JobQuery, Query()]) -> JobList:
    """The caller's jobs, newest first, without their results."""
    where = JobFilter(status=query.status, kind=query.kind, label=query.label, batch=query.batch)
    try:
        page = services.store.list(key.owner, where, query.cursor, query.limit)
    except Refused as error:
        raise InvalidParameters((ProblemItem(parameter="cursor", code=error.code, message=error.message),)) from error
    return JobList(jobs=page.jobs, cursor=page.cursor)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    response_class=Response,
    responses={200: body("JobView", "The job as it is now."), **problems(404, 422)},
)
async def get_job(services: Services, record: OwnJob, prefer: Prefer = None) -> Response:
    """A job: its status, its progress, and once it has ended its result or its error."""
    wait = preferred_wait(prefer)
    return await _answer(services, await _settled(services, record, wait), 200, preference_applied(wait))


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    response_class=Response,
    responses={200: body("JobView", "The job, cancelled or asked to stop."), **problems(404, 422)},
)
def cancel_job(services: Services, key: Submitter, job_id: JobId) -> Response:
    """Cancel a job: a queued one at once, a running one within moments. One that has ended is left as it is."""
    find_job(services, key, job_id)
    record = services.store.cancel(job_id)
    if record is None:
        raise not_found(job_id)
    return Response(job_json(record, services.blobs), media_type="application/json")


@router.delete("/{job_id}", operation_id="delete_job", status_code=204, responses=problems(404, 409, 422))
def delete_job(services: Services, key: Submitter, job_id: JobId) -> None:
    """Forget a job and its result. One that runs must be cancelled first."""
    find_job(services, key, job_id)
    if services.store.delete(job_id) is None:
        raise not_found(job_id)
    # The job is gone; blobs that cannot be deleted now are swept later.
    with suppress(Unavailable):
        services.blobs.delete(job_id)


@router.get(
    "/{job_id}/events",
    operation_id="stream_job_events",
    response_class=Response,
    responses={
        200: event_stream(
            ("JobState", "JobTokens"),
            "Events named by the job's status, each with the job (a JobState) as its data; the first is a snapshot, "
            "the last is terminal. While the job is queued, the latest event comes again, under its own id, when "
            "`queued_ahead` has changed, which is looked up every 15 seconds. While a `generation` runs, an event that "
            "brings new tokens is named `tokens`, and its data (a JobTokens) is the job with `tokens`: per text "
            "(`prompt`, `strength`, null for the unsteered one) those from number `first` on, which take the place of "
            "any that the client has there. In a snapshot they are all so far; what came last is in the result.",
        ),
        204: {"description": "The job has ended, and `Last-Event-ID` is its last event."},
        **problems(404, 422),
    },
)
async def stream_job_events(
    services: Services,
    key: Reader,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> Response:
    """Follow a job as server-sent events."""
    record = await run_in_threadpool(find_job, services, key, job_id)
    after = resume_point(last_event_id)
    if record.status.terminal and after == str(record.version):
        return Response(status_code=204)
    following = services.events.watch(job_id, after)
    frames = stream(
        following,
        services.closing,
        lambda: still_valid(services, key),
        lambda: _queued_ahead(services, job_id),
        services.keep_alive_s,
    )
    return StreamingResponse(frames, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _read(
    raw: bytes, key: ApiKey, services: GatewayServices, idempotency_key: str | None
) -> tuple[NewJob, Idempotency | None]:
    """Everything about a body that takes computing; raises what is wrong with it."""
    job = admitted(_parser.parse(raw), key, services)
    return job, idempotency(idempotency_key, job.spec)


async def _settled(services: GatewayServices, record: JobRecord, wait: int | None) -> JobRecord:
    """The record after waiting for the job to end.

    If the store goes away meanwhile, the record as it was: the job is accepted, and the client must learn its id.
    """
    if not wait or record.status.terminal:
        return record
    try:
        await ended_within(services.events, record.id, wait, services.closing)
        return await run_in_threadpool(services.store.get, record.id) or record
    except Unavailable:
        return record


async def _answer(services: GatewayServices, record: JobRecord, status: int, headers: dict[str, str]) -> Response:
    if record.status is JobStatus.QUEUED:
        view = job_json(record, services.blobs, await _queued_ahead(services, record.id))
    elif record.result is None or record.result.document is not None:
        view = job_json(record, services.blobs)
    else:
        view = await run_in_threadpool(job_json, record, services.blobs)
    return Response(view, status, headers, media_type="application/json")


async def _queued_ahead(services: GatewayServices, job_id: str) -> int | None:
    """None also while the store is away: what is known of the job is worth telling."""
    try:
        return await run_in_threadpool(services.store.queued_ahead, job_id)
    except Unavailable:
        return None
