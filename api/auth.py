"""Who asks, whether they may, and whether not too often.

The key is asked of the store on every request, in one round trip that also takes a request from the key's allowance:
so a rate holds over all gateway processes, and a revoked key is refused at once by every one of them.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.dependencies import Services
from services.contracts.errors import ErrorCode, Limited, Refused
from services.tenants.keys import ApiKey, Scope, authenticate
from services.tenants.limits import RateStanding

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="lensd_<id>_<secret>",
    description="An API key; `lensd keys new` makes one.",
    auto_error=False,
)


Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def caller(request: Request, services: Services, credentials: Credentials) -> ApiKey:
    """The key that a request came with; raises Refused(UNAUTHENTICATED) or Limited(RATE_LIMITED)."""
    if credentials is None:
        message = "this needs an API key: send `Authorization: Bearer lensd_…`"
        raise Refused(ErrorCode.UNAUTHENTICATED, message)
    admitted = authenticate(services.keys, credentials.credentials, services.tenants)
    key, standing = admitted.key, admitted.standing
    request.state.owner = key.owner
    request.state.answer_headers = rate_headers(standing)
    if not standing.allowed:
        rate = f"{standing.rate.per_second:g} requests per second, {standing.rate.burst} at once"
        message = f"this key makes requests faster than it may ({rate}): wait as long as Retry-After says"
        raise Limited(ErrorCode.RATE_LIMITED, message, retry_after_s=math.ceil(standing.retry_after_s))
    return key


def rate_headers(standing: RateStanding) -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers).

    `q` requests in `w` seconds; `r` are left now, and all of them are again in `t` seconds.
    """
    rate = standing.rate
    return {
        "RateLimit-Policy": f'"requests";q={rate.burst};w={math.ceil(rate.window_s)}',
        "RateLimit": f'"requests";r={standing.remaining};t={math.ceil(standing.full_in_s)}',
    }


def _needs(scope: Scope) -> Callable[[ApiKey], Awaitable[ApiKey]]:
    async def allowed(key: Annotated[ApiKey, Depends(caller)]) -> ApiKey:
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

Administrator = Annotated[ApiKey, Depends(_needs(Scope.ADMIN))]
"""The key of a request that looks after keys."""
