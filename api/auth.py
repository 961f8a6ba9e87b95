"""Who asks, and whether they may."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.dependencies import Services
from services.contracts.errors import ErrorCode, Refused
from services.tenants.keys import ApiKey, Scope, authenticate

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="lensd_<id>_<secret>",
    description="An API key; `lensd keys new` makes one.",
    auto_error=False,
)


def _caller(
    request: Request,
    services: Services,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> ApiKey:
    if credentials is None:
        message = "this needs an API key: send `Authorization: Bearer lensd_…`"
        raise Refused(ErrorCode.UNAUTHENTICATED, message)
    key = authenticate(services.keys, credentials.credentials)
    request.state.owner = key.owner
    return key


def _needs(scope: Scope) -> Callable[[ApiKey], Awaitable[ApiKey]]:
    async def allowed(key: Annotated[ApiKey, Depends(_caller)]) -> ApiKey:
        require_scope(key, scope)
        return key

    return allowed


def require_scope(key: ApiKey, scope: Scope) -> None:
    """Raises Refused(FORBIDDEN) when the key lacks the scope."""
    if scope not in key.scopes:
        held = ", ".join(key.scopes) or "none"
        raise Refused(ErrorCode.FORBIDDEN, f"this needs a key with the scope {scope.value!r}; yours has: {held}")


Reader = Annotated[ApiKey, Depends(_needs(Scope.READ))]
"""The key of a request that only looks."""

Submitter = Annotated[ApiKey, Depends(_needs(Scope.JOBS))]
"""The key of a request that makes, cancels or deletes jobs."""
