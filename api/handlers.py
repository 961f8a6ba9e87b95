"""What the framework refuses by itself (no such route, a query that is not understood), in the one shape of errors."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from api.errors import InvalidParameters, ProblemItem, problem_response
from api.violations import requirement, show
from services.contracts.errors import ErrorCode, LensdError
from services.logs import request_id

_FRAMEWORK_CODES: Mapping[int, ErrorCode] = {
    HTTPStatus.NOT_FOUND: ErrorCode.ROUTE_NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: ErrorCode.METHOD_NOT_ALLOWED,
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


async def on_http_exception(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)
    code = _FRAMEWORK_CODES.get(exception.status_code, ErrorCode.INTERNAL)
    where = show(request.url.path)
    messages = {
        ErrorCode.ROUTE_NOT_FOUND: f"there is nothing at {where}: /docs shows what there is",
        ErrorCode.METHOD_NOT_ALLOWED: f"{request.method} is not possible at {where}: see the header Allow",
    }
    error = LensdError(code, messages.get(code, "the request could not be handled"))
    headers = {"Allow": ", ".join(_allowed(request))} if code is ErrorCode.METHOD_NOT_ALLOWED else exception.headers
    return _problem(request, error, headers)


def _allowed(request: Request) -> list[str]:
    """The methods that are possible at the request's path. Every route knows only its own, and so does the framework's
    answer."""
    routes = request.app.routes
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


async def on_invalid_parameters(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, RequestValidationError)
    return _problem(request, InvalidParameters(tuple(_item(error) for error in exception.errors())))


def _item(error: ErrorDetails) -> ProblemItem:
    _, *path = error["loc"]
    name = ".".join(str(part) for part in path)
    match error["type"]:
        case "missing":
            message = f"{show(name)} is missing"
        case "extra_forbidden":
            message = f"{show(name)} is not a parameter here"
        case _:
            message = f"{name}: {show(error['input'])} is not accepted here: expected {requirement(error)}"
    return ProblemItem(parameter=name, code=ErrorCode.INVALID_REQUEST, message=message)


def _problem(request: Request, error: LensdError, headers: Mapping[str, str] | None = None) -> Response:
    return problem_response(error, path=request.url.path, request_id=request_id.get() or "", headers=headers)
