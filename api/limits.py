"""What a request may weigh and take: headers and form checked before anything reads it, the body while it comes in."""

import asyncio
import re
import time
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
    patience_s: float = 20.0
    """Seconds that a body may take, beside what its bytes take at `body_bytes_per_s`."""
    body_bytes_per_s: int = 10_000


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
            receive = _timed(_counted(receive, bound), self.limits)
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


def _timed(receive: Receive, limits: RequestLimits) -> Receive:
    started = time.monotonic()
    received = 0
    whole = False

    async def in_time() -> Message:
        nonlocal received, whole
        if whole:
            # Whoever asks on waits for the client to go away.
            return await receive()
        left = started + limits.patience_s + received / limits.body_bytes_per_s - time.monotonic()
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError:
            raise _too_slow(received, time.monotonic() - started) from None
        received += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        return message

    return in_time


def _too_slow(received: int, seconds: float) -> Refused:
    message = (
        f"the body came too slowly: {received:,} bytes in {seconds:.1f} seconds; send it again, "
        "over a slow connection in smaller pieces"
    )
    return Refused(ErrorCode.REQUEST_TIMEOUT, message)


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
