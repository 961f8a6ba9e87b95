"""The gateway as an ASGI application on the ports it is given. Importing or building it connects to nothing."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api.cors import add_cors
from api.dependencies import GatewayServices
from api.docs import add_docs
from api.envelope import EnvelopeMiddleware, Observe
from api.handlers import on_http_exception, on_invalid_parameters
from api.limits import LimitsMiddleware, RequestLimits
from api.openapi import describe
from api.routes import ROUTERS

Background = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    services: GatewayServices,
    limits: RequestLimits,
    background: Background | None = None,
    origins: Sequence[str] = (),
    observe: Observe | None = None,
) -> FastAPI:
    """The application on `services`; `background` is what runs beside it for as long as it is served.

    `origins` are those of web pages that may use it; `observe` is told of each request.
    """
    app = FastAPI(
        title="lensd",
        version=version("lensd"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=background,
        # FastAPI's own telemetry would take the texts of errors, prompts among them, out of the process.
        telemetry={
            "auto_configure": False,
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
        },
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_invalid_parameters},
    )
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router)
    add_docs(app, describe())
    app.add_middleware(LimitsMiddleware, limits=limits)
    app.add_middleware(EnvelopeMiddleware, observe=observe)
    if origins:
        add_cors(app, origins)
    return app
