"""Whether the process lives, and whether it can serve; neither needs a key."""

from typing import Literal

from fastapi import APIRouter

from api.dependencies import GatewayServices, Services
from api.documented import NO_KEY, problems
from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, LensdError, Unavailable

router = APIRouter(tags=["health"])


class Liveness(Contract):
    status: Literal["alive"] = "alive"


class Readiness(Contract):
    """Everything that a job needs is there."""

    status: Literal["ready"] = "ready"
    pools: dict[str, int]


@router.get("/livez", operation_id="check_liveness", responses=problems(key=False), openapi_extra=NO_KEY)
async def check_liveness() -> Liveness:
    """Whether the gateway's process answers at all."""
    return Liveness()


@router.get("/readyz", operation_id="check_readiness", responses=problems(503, key=False), openapi_extra=NO_KEY)
def check_readiness(services: Services) -> Readiness:
    """Whether the store answers and every served pool has a live worker; the problem says what is not there."""
    workers = _workers(services)
    if not workers:
        message = f"no worker of the pool {services.pool!r} is alive: jobs are accepted and wait for one"
        raise Unavailable(ErrorCode.NOT_READY, message)
    return Readiness(pools={services.pool: workers})


def _workers(services: GatewayServices) -> int:
    try:
        services.store.ping()
        return sum(state.pool == services.pool for state in services.workers.alive())
    except LensdError as error:
        raise Unavailable(ErrorCode.NOT_READY, error.message) from error
