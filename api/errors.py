"""How an error leaves the gateway: one table from code to status, and one shape, RFC 9457 problem details."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Unavailable, Violation

PROBLEM_MEDIA_TYPE = "application/problem+json"
MAX_ITEMS = 20
"""Violations listed in one problem; the rest are counted."""

_MAX_MESSAGE_CHARACTERS = 2_000
_MAX_INSTANCE_CHARACTERS = 200

STATUS: Mapping[ErrorCode, HTTPStatus] = {
    ErrorCode.INVALID_JSON: HTTPStatus.BAD_REQUEST,
    ErrorCode.INVALID_REQUEST: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.INVALID_URL: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.BODY_TOO_DEEP: HTTPStatus.BAD_REQUEST,
    ErrorCode.HEADERS_TOO_LARGE: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    ErrorCode.REQUEST_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.NOT_ACCEPTABLE: HTTPStatus.NOT_ACCEPTABLE,
    ErrorCode.ROUTE_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    ErrorCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorCode.UNKNOWN_MODEL: HTTPStatus.NOT_FOUND,
    ErrorCode.UNKNOWN_SAE: HTTPStatus.NOT_FOUND,
    ErrorCode.SAE_MISMATCH: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_LAYER: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_HEAD: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_SITE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_FEATURE: HTTPStatus.NOT_FOUND,
    ErrorCode.UNKNOWN_POSITION: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNEQUAL_LENGTHS: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.INVALID_ANSWER: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.INVALID_PROMPT: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_TOKEN: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.PROMPT_TOO_LONG: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNSUPPORTED_METRIC: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.JOB_TOO_LARGE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UNKNOWN_WEBHOOK: HTTPStatus.NOT_FOUND,
    ErrorCode.JOB_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.JOB_RUNNING: HTTPStatus.CONFLICT,
    ErrorCode.JOB_UNFINISHED: HTTPStatus.CONFLICT,
    ErrorCode.JOB_WITHOUT_RESULT: HTTPStatus.CONFLICT,
    ErrorCode.RESULT_EXPIRED: HTTPStatus.NOT_FOUND,
    ErrorCode.RESULT_LOST: HTTPStatus.GONE,
    ErrorCode.TENSOR_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.UNKNOWN_EXAMPLE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.NO_FIGURE: HTTPStatus.CONFLICT,
    ErrorCode.FIGURE_TOO_LARGE: HTTPStatus.CONFLICT,
    ErrorCode.FEATURE_INDEX_MISSING: HTTPStatus.NOT_FOUND,
    ErrorCode.LABEL_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.TOO_MANY_LABELS: HTTPStatus.CONFLICT,
    ErrorCode.TOO_MANY_WEBHOOKS: HTTPStatus.CONFLICT,
    ErrorCode.IDEMPOTENCY_CONFLICT: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.BATCH_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.BATCH_UNFINISHED: HTTPStatus.CONFLICT,
    ErrorCode.BATCH_CLOSED: HTTPStatus.CONFLICT,
    ErrorCode.INVALID_LINES: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.UPLOAD_LOST: HTTPStatus.GONE,
    ErrorCode.KEY_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.KEY_CHANGED: HTTPStatus.CONFLICT,
    ErrorCode.LAST_ADMIN_KEY: HTTPStatus.CONFLICT,
    ErrorCode.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.TOO_MANY_JOBS: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.TOO_MANY_BATCHES: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.QUOTA_EXCEEDED: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.QUEUE_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.STORE_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.NOT_READY: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    # How a job ended: seen inside a job, and a status only if one ever escapes.
    ErrorCode.WORKER_LOST: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.METHOD_FAILED: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.MODEL_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.SAE_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.OUT_OF_MEMORY: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


class ProblemItem(Contract):
    """One thing wrong with a request: in the body (`pointer`, RFC 6901) or in a parameter or header (`parameter`)."""

    pointer: str | None = None
    parameter: str | None = None
    code: ErrorCode
    message: str


class Problem(Contract):
    """What is wrong, why, and what to do instead (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:lensd:error:unknown_layer"])]
    title: str
    status: int
    detail: str
    code: ErrorCode
    instance: Annotated[str, Field(description="The path that was asked for.")]
    request_id: Annotated[str, Field(description="As in X-Request-Id: names the log lines of this request.")]
    errors: Annotated[tuple[ProblemItem, ...], Field(description=f"At most {MAX_ITEMS}.")] = ()


class InvalidParameters(LensdError):
    """Query parameters or headers that cannot be understood."""

    def __init__(self, items: tuple[ProblemItem, ...]) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, items[0].message)
        self.items = items


def status_of(error: LensdError) -> HTTPStatus:
    """The table's status; but what a body names and lensd lacks (a model, say) makes the body wrong, not the path."""
    return HTTPStatus.UNPROCESSABLE_ENTITY if isinstance(error, InvalidSpec) else STATUS[error.code]


def problem_response(
    error: LensdError, *, path: str, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that tells the client of `error`."""
    status = status_of(error)
    problem = Problem(
        type=f"urn:lensd:error:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=status,
        detail=_bounded(error.message),
        code=error.code,
        instance=path[:_MAX_INSTANCE_CHARACTERS],
        request_id=request_id,
        errors=_items(error)[:MAX_ITEMS],
    )
    # Escaped to ASCII, so that no string a client sent (lone surrogates among them) can fail to be encoded.
    body = json.dumps(problem.model_dump())
    return Response(body, status, {**_headers(error, status), **(headers or {})}, PROBLEM_MEDIA_TYPE)


def _items(error: LensdError) -> tuple[ProblemItem, ...]:
    if isinstance(error, InvalidSpec):
        return tuple(_item(violation) for violation in error.violations)
    return error.items if isinstance(error, InvalidParameters) else ()


def _item(violation: Violation) -> ProblemItem:
    return ProblemItem(pointer=violation.pointer, code=violation.code, message=_bounded(violation.message))


def _bounded(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE_CHARACTERS else f"{message[:_MAX_MESSAGE_CHARACTERS]}…"


def _headers(error: LensdError, status: HTTPStatus) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="lensd"'
    if status == HTTPStatus.REQUEST_TIMEOUT:
        # What is still to come of the body must not be taken for the next request.
        headers["Connection"] = "close"
    return headers
