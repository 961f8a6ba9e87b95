"""One connection of a client: bounded in the bytes of its head and in the time that the client may take.

uvicorn bounds neither. What it waits for by itself for ever, each with an end here:

- a head that does not end, or never begins: 408, or the connection is closed where an answer is under way;
- what is left of a body after its answer: the same;
- an answer that the client does not take: the connection is dropped once it has taken nothing for a while.

How long the body of a request may take is seen to in `api/limits.py`, where it is read.
"""

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.envelope import SECURITY_HEADERS
from api.errors import PROBLEM_MEDIA_TYPE, Problem
from services.contracts.errors import ErrorCode

MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers. The application has a tighter bound; this one holds before it is asked."""


class BoundedProtocol(HttpToolsProtocol):
    """What a client may take from the server before there is a request."""

    patience_s = 20.0
    """Seconds for a head, and between two looks at whether an answer is being taken."""

    _in_head = False
    _head_bytes = 0
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if was_in_head and self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("")
        elif self._in_head or self._is_idle():
            self._expect_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_head()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        del msg
        reason = f"this is not HTTP/1.1, or its headers are larger than {MAX_HEAD_BYTES:,} bytes"
        self._refuse(HTTPStatus.BAD_REQUEST, ErrorCode.INVALID_REQUEST, reason)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_answer(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _expect_head(self) -> None:
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.patience_s, self._head_is_late)

    def _forget_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if self._in_head and self._is_idle():
            reason = f"the head of the request did not come within {self.patience_s:g} seconds: send it at once"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, ErrorCode.REQUEST_TIMEOUT, reason)
        elif self._in_head or self._is_idle():
            # With a request under way, an answer would be taken for that one's.
            self.transport.close()

    def _is_idle(self) -> bool:
        """Whether no request waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _watch_answer(self, left: int) -> None:
        """Look again later whether the client has taken any of the `left` bytes."""
        self._stalled = self.loop.call_later(self.patience_s, self._is_answer_taken, left)

    def _is_answer_taken(self, left: int) -> None:
        now = self.transport.get_write_buffer_size()
        if now < left:
            self._watch_answer(now)
        else:
            self.transport.abort()

    def _refuse(self, status: HTTPStatus, code: ErrorCode, reason: str) -> None:
        """A problem, unless it would land in the middle of an answer, and the end of the connection."""
        if self.transport.is_closing():
            return
        if self._is_idle() or not self.cycle.response_started:
            self.transport.write(_answer(status, code, reason))
        self.transport.close()


def _answer(status: HTTPStatus, code: ErrorCode, reason: str) -> bytes:
    title = code.replace("_", " ").capitalize()
    problem = Problem(
        type=f"urn:lensd:error:{code}",
        title=title,
        status=status,
        detail=reason,
        code=code,
        instance="",
        request_id="",
    )
    body = problem.model_dump_json().encode()
    headers = {
        **SECURITY_HEADERS,
        "Content-Type": PROBLEM_MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{head}\r\n".encode() + body
