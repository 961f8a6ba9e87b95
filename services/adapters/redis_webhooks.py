"""Endpoints in Redis; the keys are listed in `lua/delivery_prelude.lua`. They stay until they are deleted."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

from redis import Redis

from services.adapters.lua_scripts import Argument, LuaScripts
from services.adapters.redis_client import store_errors
from services.adapters.redis_records import microseconds, moment
from services.contracts.webhook import DeliveryOutcome
from services.webhooks.endpoint import MAX_ENDPOINTS, Endpoint, RetiringSecret
from services.webhooks.store import KEPT_OUTCOMES, too_many_webhooks

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Hash = Mapping[bytes, bytes]


class RedisWebhookStore:
    """Implements `services.webhooks.store.WebhookStore`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._scripts = LuaScripts(client)

    def create(self, endpoint: Endpoint) -> None:
        texts: list[Argument] = ["url", endpoint.url, "secret", endpoint.secret]
        if endpoint.description is not None:
            texts += ("description", endpoint.description)
        created = _microseconds(endpoint.created_at)
        if not self._scripts.run("webhook_create", endpoint.id, endpoint.owner, MAX_ENDPOINTS, created, *texts):
            raise too_many_webhooks()

    def get(self, endpoint_id: str) -> Endpoint | None:
        with store_errors():
            fields = cast("_Hash", self._client.hgetall(f"lensd:webhook:{endpoint_id}"))
        return _endpoint(endpoint_id, fields) if fields else None

    def list(self, owner: str) -> tuple[Endpoint, ...]:
        with store_errors():
            ids = cast("list[bytes]", self._client.zrange(f"lensd:webhooks:{owner}", 0, -1))
            pipeline = self._client.pipeline(transaction=False)
            for each in ids:
                pipeline.hgetall(f"lensd:webhook:{each.decode()}")
            found = pipeline.execute()
        return tuple(_endpoint(each.decode(), fields) for each, fields in zip(ids, found, strict=True) if fields)

    def rotate(self, endpoint_id: str, secret: str, overlap_until: datetime | None) -> bool:
        until = "" if overlap_until is None else _microseconds(overlap_until)
        return bool(self._scripts.run("webhook_rotate", endpoint_id, secret, until))

    def delete(self, endpoint_id: str) -> bool:
        return bool(self._scripts.run("webhook_delete", endpoint_id))

    def outcomes(self, endpoint_id: str) -> Sequence[DeliveryOutcome]:
        with store_errors():
            kept = cast("list[bytes]", self._client.lrange(f"lensd:outcomes:{endpoint_id}", 0, KEPT_OUTCOMES - 1))
        return tuple(map(DeliveryOutcome.model_validate_json, kept))


def _endpoint(endpoint_id: str, fields: _Hash) -> Endpoint:
    description, retiring, disabled = (fields.get(name) for name in (b"description", b"retiring", b"disabled_at"))
    return Endpoint(
        id=endpoint_id,
        owner=fields[b"owner"].decode(),
        url=fields[b"url"].decode(),
        description=None if description is None else description.decode(),
        secret=fields[b"secret"].decode(),
        retiring=None
        if retiring is None
        else RetiringSecret(secret=retiring.decode(), until=moment(fields[b"retiring_until"])),
        created_at=moment(fields[b"created_at"]),
        disabled_at=None if disabled is None else moment(disabled),
    )


def _microseconds(at: datetime) -> int:
    return microseconds((at - _EPOCH).total_seconds())
