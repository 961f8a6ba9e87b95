"""Who asks, whether they may, and whether not too often.

The key is asked of the store on every request, in one round trip that also takes a request from the key's allowance:
so a rate holds over all gateway processes, and a revoked key is refused at once by every one of them.
"""

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.dependencies import GatewayServices, Services
from services.contracts.errors import ErrorCode, Limited, Refused
from services.logs import request_id
from services.tenants.keys import Admitted, ApiKey, Scope, authenticate
from services.tenants.limits import RateStanding

_MAX_TARGET_CHARACTERS = 200

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="lensd_<id>_<secret>",
    description="An API key; `lensd keys new` makes one.",
    auto_error=False,
)


Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def caller(request: Request, services: Services, credentials: Credentials) -> ApiKey:
    """The key that a request came with; raises Refused(UNAUTHENTICATED) or Limited(RATE_LIMITED)."""
    admitted = _admitted(request, services, "" if credentials is None else credentials.credentials)
    key, standing = admitted.key, admitted.standing
    request.state.owner = key.owner
    request.state.answer_headers = rate_headers(standing)
    if not standing.allowed:
        rate = f"{standing.rate.per_second:g} requests per second, {standing.rate.burst} at once"
        message = f"this key makes requests faster than it may ({rate}): wait as long as Retry-After says"
        raise Limited(ErrorCode.RATE_LIMITED, message, retry_after_s=math.ceil(standing.retry_after_s))
    return key


def _admitted(request: Request, services: GatewayServices, credential: str) -> Admitted:
    address = "" if request.client is None else request.client.host
    services.strangers.check(address, credential)
    try:
        if not credential:
            message = "this needs an API key: send `Authorization: Bearer lensd_…`"
            raise Refused(ErrorCode.UNAUTHENTICATED, message)
        admitted = authenticate(services.keys, credential, services.tenants)
    except Refused:
        services.strangers.failed(address)
        raise
    services.strangers.opened(credential)
    return admitted


async def still_valid(services: GatewayServices, key: ApiKey) -> bool:
    """Whether a request that `key` opened could be made now; raises Unavailable(STORE_UNAVAILABLE)."""
    current = await run_in_threadpool(services.keys.get, key.id)
    return key.still_opens(current, datetime.now(UTC))


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


def _administrator(request: Request, services: Services, key: Annotated[ApiKey, Depends(caller)]) -> ApiKey:
    require_admin(services, key, f"{request.method} {request.url.path}"[:_MAX_TARGET_CHARACTERS])
    return key


def require_admin(services: GatewayServices, key: ApiKey, target: str) -> None:
    """Raises Refused(FORBIDDEN), and puts it on record, when the key lacks the scope `admin`."""
    if Scope.ADMIN not in key.scopes:
        services.refusals.record(services.audit, key.id, target, request_id.get())
    require_scope(key, Scope.ADMIN)


def require_scope(key: ApiKey, scope: Scope) -> None:
    """Raises Refused(FORBIDDEN) when the key lacks the scope."""
    if scope not in key.scopes:
        held = ", ".join(key.scopes) or "none"
        raise Refused(ErrorCode.FORBIDDEN, f"this needs a key with the scope {scope.value!r}; yours has: {held}")


Reader = Annotated[ApiKey, Depends(_needs(Scope.READ))]
"""The key of a request that only looks."""

Submitter = Annotated[ApiKey, Depends(_needs(Scope.JOBS))]
"""The key of a request that makes, cancels or deletes jobs."""

Administrator = Annotated[ApiKey, Depends(_administrator)]
"""The key of a request that looks after keys."""
