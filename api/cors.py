"""Letting web pages of some origins use the API from a browser. Without any, no page of another origin can."""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from api.envelope import REQUEST_ID, SECURITY_HEADERS
from api.idempotency import REPLAYED

ASKED = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", REQUEST_ID)
ANSWERED = ("Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", REPLAYED, REQUEST_ID)
MAX_AGE_S = 600


class _Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.headers.update(SECURITY_HEADERS)
        return response


def add_cors(app: FastAPI, origins: Sequence[str]) -> None:
    """Outermost, so that a page can also read what is refused. Keys travel in a header: no cookie is ever taken."""
    app.add_middleware(
        _Cors,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=list(ASKED),
        expose_headers=list(ANSWERED),
        allow_credentials=False,
        max_age=MAX_AGE_S,
    )
