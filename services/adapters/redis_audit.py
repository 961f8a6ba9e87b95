"""The audit log in Redis: the stream `lensd:audit`, capped; its entries' ids are times."""

from datetime import UTC, datetime
from typing import cast

from redis import Redis

from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_client import store_errors
from services.tenants.audit import AuditEntry, AuditEvent, AuditPage, check_cursor

KEPT = 10_000


class RedisAuditLog:
    """Implements `services.tenants.audit.AuditLog`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._scripts = LuaScripts(client)

    def record(self, event: AuditEvent) -> None:
        self._scripts.run("audit", event.model_dump_json(), KEPT)

    def page(self, cursor: str | None, limit: int) -> AuditPage:
        check_cursor(cursor)
        newest = "+" if cursor is None else f"({cursor}"
        with store_errors():
            answer = self._client.xrevrange("lensd:audit", newest, "-", count=limit + 1)
        found = cast("list[tuple[bytes, dict[bytes, bytes]]]", answer)
        entries = tuple(_entry(entry_id.decode(), fields[b"event"]) for entry_id, fields in found[:limit])
        return AuditPage(entries=entries, cursor=entries[-1].id if len(found) > limit else None)


def _entry(entry_id: str, document: bytes) -> AuditEntry:
    at = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1_000, UTC)
    return AuditEntry(id=entry_id, at=at, **dict(AuditEvent.model_validate_json(document)))
