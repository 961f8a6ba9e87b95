"""Looking after API keys, for keys with the scope `admin`: make, list, rotate and revoke them, and read the log."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from api.auth import Administrator
from api.bodies import BodyParser
from api.dependencies import Services
from api.documented import problems, request_body
from api.errors import InvalidParameters, ProblemItem
from services.contracts.base import CatalogueId, Contract
from services.contracts.base import Request as RequestContract
from services.contracts.errors import Refused
from services.logs import request_id
from services.tenants.administration import Actor, KeyWish
from services.tenants.audit import AuditPage
from services.tenants.keys import MAX_DAYS, MAX_OVERLAP_S, ApiKey, KeyName, Owner, Scope
from services.tenants.limits import KeyLimits

router = APIRouter(prefix="/v1/admin", tags=["admin"])

KeyId = Annotated[str, Path(max_length=64, examples=["abcdefghij23"], description="The 12 characters after `lensd_`.")]


class KeyLimitsRequest(RequestContract, KeyLimits):
    """What the key has instead of the operator's defaults; what is left out or null stays as they are."""


class KeyRequest(RequestContract):
    """A key to make. Keys of one `owner` see the same jobs."""

    owner: Owner
    name: KeyName = "unnamed"
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=len(Scope), strict=False)] = (
        Scope.JOBS,
        Scope.READ,
    )
    models: Annotated[
        tuple[CatalogueId, ...] | None, Field(max_length=1_000, description="What it may use; null: every model.")
    ] = None
    limits: KeyLimitsRequest | None = None
    days: Annotated[float | None, Field(gt=0, le=MAX_DAYS, description="Until it expires; null: never.")] = None


class RotationRequest(RequestContract):
    """How long the present secret stays good beside the fresh one."""

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S)] = 0


class KeyView(Contract):
    """A key without its secret. `last_used_at` is to the minute."""

    id: str
    owner: str
    name: str
    scopes: tuple[Scope, ...]
    models: tuple[CatalogueId, ...] | None
    limits: KeyLimits
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    retiring_until: Annotated[
        datetime | None, Field(description="Until when the secret before the last rotation is good, if it is.")
    ]


class FreshKey(Contract):
    """A key with its secret, which is never shown again."""

    api_key: Annotated[str, Field(examples=["lensd_<id>_<secret>"])]
    key: KeyView


class KeyList(Contract):
    """Every key of every owner, oldest first."""

    keys: tuple[KeyView, ...]


class AuditQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cursor: Annotated[str | None, Field(max_length=500, description="As the previous page gave it.")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


_KEY_EXAMPLES = {"evaluations": {"owner": "evaluations", "name": "nightly", "models": ["smollm2-135m"], "days": 90}}
_ROTATION_EXAMPLES = {"one_day": {"overlap_s": 86_400}}

_key_body = BodyParser(TypeAdapter(KeyRequest))
_rotation_body = BodyParser(TypeAdapter(RotationRequest))


@router.post(
    "/keys",
    operation_id="create_key",
    status_code=201,
    responses=problems(400, 413, 415, 422),
    openapi_extra=request_body("KeyRequest", _KEY_EXAMPLES),
)
async def create_key(request: Request, services: Services, key: Administrator) -> FreshKey:
    """Make a key. The answer is the only place that shows its secret."""
    raw = await request.body()
    actor = _actor(key)

    def make() -> FreshKey:
        asked = _key_body.parse(raw)
        limits = KeyLimits() if asked.limits is None else KeyLimits(**dict(asked.limits))
        lifetime = None if asked.days is None else timedelta(days=asked.days)
        wish = KeyWish(asked.owner, asked.name, asked.scopes, asked.models, limits, lifetime)
        plaintext, made = services.administration.create(wish, actor)
        return FreshKey(api_key=plaintext, key=_view(made, {}))

    return await services.read(make)


@router.get("/keys", operation_id="list_keys", responses=problems())
def list_keys(services: Services, key: Administrator) -> KeyList:
    """Every key, without its secret."""
    del key
    used = services.keys.last_used()
    return KeyList(keys=tuple(_view(each, used) for each in services.keys.list()))


@router.get("/keys/{key_id}", operation_id="get_key", responses=problems(404, 422))
def get_key(services: Services, key: Administrator, key_id: KeyId) -> KeyView:
    """One key, without its secret."""
    del key
    return _view(services.administration.find(key_id), services.keys.last_used())


@router.post(
    "/keys/{key_id}/rotate",
    operation_id="rotate_key",
    responses=problems(400, 404, 409, 413, 415, 422),
    openapi_extra=request_body("RotationRequest", _ROTATION_EXAMPLES),
)
async def rotate_key(request: Request, services: Services, key: Administrator, key_id: KeyId) -> FreshKey:
    """Give a key a fresh secret; the present one stays good for `overlap_s` seconds, for clients to change over."""
    raw = await request.body()
    actor = _actor(key)

    def rotate() -> FreshKey:
        overlap = timedelta(seconds=_rotation_body.parse(raw).overlap_s)
        plaintext, fresh = services.administration.rotate(key_id, overlap, actor)
        return FreshKey(api_key=plaintext, key=_view(fresh, services.keys.last_used()))

    return await services.read(rotate)


@router.delete("/keys/{key_id}", operation_id="revoke_key", status_code=204, responses=problems(404, 409, 422))
def revoke_key(services: Services, key: Administrator, key_id: KeyId) -> None:
    """Forget a key: from now on every gateway refuses it. Not the last one with the scope `admin`."""
    services.administration.revoke(key_id, _actor(key))


@router.get("/audit", operation_id="list_audit_entries", responses=problems(422))
def list_audit_entries(services: Services, key: Administrator, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """What was done to keys and to shared labels, newest first: by which key, in which request."""
    del key
    try:
        return services.audit.page(query.cursor, query.limit)
    except Refused as error:
        raise InvalidParameters((ProblemItem(parameter="cursor", code=error.code, message=error.message),)) from error


def _actor(key: ApiKey) -> Actor:
    return Actor(key.id, request_id.get())


def _view(key: ApiKey, used: Mapping[str, datetime]) -> KeyView:
    shared = {name: getattr(key, name) for name in KeyView.model_fields.keys() & ApiKey.model_fields.keys()}
    retiring_until = None if key.retiring is None else key.retiring.until
    return KeyView(**shared, last_used_at=used.get(key.id), retiring_until=retiring_until)
