"""What a request may weigh, checked before anything reads it: headers, form of the body, bytes as they stream in."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.violations import show
from services.contracts.errors import ErrorCode, Refused

JSON = "application/json"
LINES = "application/jsonl"
"""A JSON document a line; also known as application/x-ndjson."""

_TAKE_LINES = re.compile(r"/v1/saes/[^/]+/labels|/v1/batches")
"""The paths whose bodies are lines, with a bound of their own."""

_METHODS_WITH_BODY = ("POST", "PUT", "PATCH")
_LONGEST_LENGTH = 18
"""Digits; Python refuses to convert thousands of them."""


@dataclass(frozen=True)
class RequestLimits:
    body_bytes: int = 1_000_000
    lines_bytes: int = 16_000_000
    """Of a body of JSON lines."""
    header_bytes: int = 16_384
    """Of the path, the query and all headers together."""
    headers: int = 100


class LimitsMiddleware:
    """Raises Refused; the bytes of a body are counted while the application reads them, so none is buffered here."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self._check_headers(scope, headers)
        if scope["method"] in _METHODS_WITH_BODY:
            lines = _TAKE_LINES.fullmatch(scope["path"]) is not None
            bound = self.limits.lines_bytes if lines else self.limits.body_bytes
            _check_form(headers, (LINES, "application/x-ndjson") if lines else (JSON,))
            _check_length(headers, bound)
            receive = _counted(receive, bound)
        await self.app(scope, receive, send)

    def _check_headers(self, scope: Scope, headers: Headers) -> None:
        weight = sum(len(name) + len(value) for name, value in headers.raw)
        weight += len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if len(headers.raw) > self.limits.headers or weight > self.limits.header_bytes:
            raise Refused(
                ErrorCode.HEADERS_TOO_LARGE,
                f"path, query and headers have {weight:,} bytes in {len(headers.raw)} headers: "
                f"at most {self.limits.header_bytes:,} bytes and {self.limits.headers} headers",
            )


def _check_length(headers: Mapping[str, str], bound: int) -> None:
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > _LONGEST_LENGTH or int(length) > bound):
        raise _too_large(f"is announced with {show(length)} bytes", bound)


def _counted(receive: Receive, bound: int) -> Receive:
    received = 0

    async def counting() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > bound:
            raise _too_large("is too large", bound)
        return message

    return counting


def _too_large(how: str, bound: int) -> Refused:
    message = f"the body {how}: at most {bound:,} bytes; split the work over several requests"
    return Refused(ErrorCode.BODY_TOO_LARGE, message)


def _check_form(headers: Mapping[str, str], accepted: Sequence[str]) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refused(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"content-encoding {show(encoding)} is not accepted: send the body as it is",
        )
    content_type = headers.get("content-type")
    if content_type is None:
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            return
        raise Refused(ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"a body needs `Content-Type: {accepted[0]}`")
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower()
    if media_type.strip().lower() not in accepted or charset not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise Refused(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"content-type {show(content_type)} is not accepted: send {accepted[0]} in UTF-8",
        )
