"""The fakes of the key store and of the audit log, for tests."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from services.tenants.audit import AuditEntry, AuditEvent, AuditPage, check_cursor
from services.tenants.keys import Admitted, ApiKey, Revocation, Scope
from services.tenants.limits import RateStanding, TenantLimits


class MemoryKeyStore:
    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._full_at: dict[str, datetime] = {}
        self._used: dict[str, datetime] = {}

    def get(self, key_id: str) -> ApiKey | None:
        return self._keys.get(key_id)

    def use(self, key_id: str, secret_sha256: str, defaults: TenantLimits) -> Admitted | None:
        key = self._keys.get(key_id)
        now = self._clock()
        if key is None or not key.opens_with(secret_sha256, now):
            return None
        self._used[key_id] = now
        return Admitted(key, self._take(key, defaults, now))

    def _take(self, key: ApiKey, defaults: TenantLimits, now: datetime) -> RateStanding:
        rate = defaults.rate_of(key.limits)
        one, burst = timedelta(seconds=1 / rate.per_second), timedelta(seconds=rate.window_s)
        full_at = max(now, self._full_at.get(key.id, now)) + one
        short = full_at - now - burst
        allowed = short <= timedelta(0)
        if allowed:
            self._full_at[key.id] = full_at
        else:
            full_at -= one
        return RateStanding(
            rate=rate,
            allowed=allowed,
            remaining=max(0, (burst - (full_at - now)) // one),
            full_in_s=(full_at - now).total_seconds(),
            retry_after_s=max(0.0, short.total_seconds()),
        )

    def last_used(self) -> Mapping[str, datetime]:
        return dict(self._used)

    def put(self, key: ApiKey) -> None:
        self._keys[key.id] = key

    def put_first(self, key: ApiKey) -> bool:
        if self._keys:
            return False
        self.put(key)
        return True

    def replace(self, old: ApiKey, new: ApiKey) -> bool:
        if self._keys.get(old.id) != old:
            return False
        self.put(new)
        return True

    def list(self) -> tuple[ApiKey, ...]:
        return tuple(sorted(self._keys.values(), key=lambda key: key.created_at))

    def delete(self, key_id: str) -> bool:
        self._used.pop(key_id, None)
        return self._keys.pop(key_id, None) is not None

    def revoke(self, key_id: str) -> Revocation:
        now = self._clock()
        admins = [key.id for key in self._keys.values() if Scope.ADMIN in key.scopes and key.lives(now)]
        if admins == [key_id]:
            return Revocation.LAST_ADMIN
        return Revocation.DONE if self.delete(key_id) else Revocation.UNKNOWN


class MemoryAuditLog:
    def __init__(self) -> None:
        self._entries: list[AuditEntry] = []

    def record(self, event: AuditEvent) -> None:
        self._entries.append(AuditEntry(id=f"{len(self._entries) + 1}-0", at=datetime.now(UTC), **dict(event)))

    def page(self, cursor: str | None, limit: int) -> AuditPage:
        check_cursor(cursor)
        end = len(self._entries)
        if cursor is not None:
            end = min(end, max(0, int(cursor.partition("-")[0]) - 1))
        found = self._entries[max(0, end - limit) : end][::-1]
        return AuditPage(entries=tuple(found), cursor=found[-1].id if found and end > limit else None)
