"""What surrounds every request: its id, one log line, the security headers, and an answer whatever happens inside."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem_response
from services.contracts.errors import ErrorCode, LensdError
from services.logs import request_id

REQUEST_ID = "X-Request-Id"
SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Added unless the answer sets its own."""

CLIENT_LEFT = 499
"""What the log says when the client went away before there was an answer."""

Observe = Callable[[str, str | None, int, float], None]
"""Told of each request: method, route as OpenAPI writes it (None if there is none), status, seconds."""

access = logging.getLogger("api.access")
errors = logging.getLogger("api.errors")

PROBES = ("/livez", "/readyz")
"""Asked every few seconds by load balancers: only their bad news belongs into the log."""

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOGGED_PATH_CHARACTERS = 200


class EnvelopeMiddleware:
    """The outermost layer: nothing raised inside leaves it."""

    def __init__(self, app: ASGIApp, observe: Observe | None = None) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        current = given if _ACCEPTED_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        token = request_id.set(current)
        try:
            exchange = _Exchange(scope, send, current)
            await exchange.run(self.app, receive)
            if self.observe is not None:
                exchange.tell(self.observe)
        finally:
            request_id.reset(token)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, current: str) -> None:
        self.scope = scope
        self.send = send
        self.request_id = current
        self.status: int | None = None
        self.started = time.perf_counter()

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        try:
            await app(self.scope, receive, self._send)
        except ClientDisconnect:
            self.status = self.status or CLIENT_LEFT
        except Exception as error:
            known = error if isinstance(error, LensdError) else self._unexpected(error)
            if self.status is not None:
                # The answer is under way: only breaking the connection tells the client that it is not whole.
                raise
            response = problem_response(known, path=self.scope["path"], request_id=self.request_id)
            await response(self.scope, receive, self._send)
        finally:
            self._log()

    def _unexpected(self, error: Exception) -> LensdError:
        errors.error("unexpected error", exc_info=error)
        message = f"something went wrong inside lensd: the operator's log tells more under {self.request_id}"
        return LensdError(ErrorCode.INTERNAL, message)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self.request_id
            headers.update(self.scope.get("state", {}).get("answer_headers", {}))
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self.send(message)

    def tell(self, observe: Observe) -> None:
        route = getattr(self.scope.get("route"), "path", None)
        observe(self.scope["method"], route, self.status or CLIENT_LEFT, time.perf_counter() - self.started)

    def _log(self) -> None:
        # As it came, percent-encoded, and without the query: what a client filters by is its own affair.
        path = (self.scope.get("raw_path") or b"").split(b"?")[0].decode("ascii", "backslashreplace")
        milliseconds = round((time.perf_counter() - self.started) * 1000, 1)
        state = self.scope.get("state", {})
        fields = {"ms": milliseconds, **{name: state[name] for name in ("owner", "job_id") if name in state}}
        line = f"{self.scope['method']} {path[:_LOGGED_PATH_CHARACTERS]} {self.status}"
        level = logging.DEBUG if path in PROBES and self.status == HTTPStatus.OK else logging.INFO
        access.log(level, line, extra={"fields": fields})
