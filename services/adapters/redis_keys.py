"""API keys in Redis.

lensd:keys           hash: key id → the key (JSON)
lensd:keys:used      hash: key id → second of its last use, to the minute
lensd:rate:<key id>  string: the time, in microseconds, at which the key's allowance of requests is full again
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from redis import Redis

from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_client import store_errors
from services.tenants.keys import Admitted, ApiKey, Revocation
from services.tenants.limits import Rate, RateStanding, TenantLimits

_KEYS = "lensd:keys"
_USED = "lensd:keys:used"


class RedisKeyStore:
    """Implements `services.tenants.keys.KeyStore`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._scripts = LuaScripts(client)

    def get(self, key_id: str) -> ApiKey | None:
        with store_errors():
            document = cast("bytes | None", self._client.hget(_KEYS, key_id))
        return None if document is None else ApiKey.model_validate_json(document)

    def use(self, key_id: str, secret_sha256: str, defaults: TenantLimits) -> Admitted | None:
        rate = defaults.rate
        answer = self._scripts.run("key_use", key_id, secret_sha256, _now(), rate.per_second, rate.burst)
        if answer is None:
            return None
        document, allowed, remaining, full_in, retry_after, per_second, burst = answer
        standing = RateStanding(
            rate=Rate(float(per_second), burst),
            allowed=bool(allowed),
            remaining=remaining,
            full_in_s=full_in / 1_000_000,
            retry_after_s=retry_after / 1_000_000,
        )
        return Admitted(ApiKey.model_validate_json(document), standing)

    def last_used(self) -> Mapping[str, datetime]:
        with store_errors():
            seconds = cast("dict[bytes, bytes]", self._client.hgetall(_USED))
        return {key_id.decode(): datetime.fromtimestamp(int(second), UTC) for key_id, second in seconds.items()}

    def put(self, key: ApiKey) -> None:
        with store_errors():
            self._client.hset(_KEYS, key.id, key.model_dump_json())

    def put_first(self, key: ApiKey) -> bool:
        return bool(self._scripts.run("key_put_first", key.id, key.model_dump_json()))

    def replace(self, old: ApiKey, new: ApiKey) -> bool:
        with store_errors():
            stored = cast("bytes | None", self._client.hget(_KEYS, old.id))
        if stored is None or ApiKey.model_validate_json(stored) != old:
            return False
        return bool(self._scripts.run("key_replace", old.id, stored, new.model_dump_json()))

    def list(self) -> tuple[ApiKey, ...]:
        with store_errors():
            documents = cast("list[bytes]", self._client.hvals(_KEYS))
        return tuple(sorted(map(ApiKey.model_validate_json, documents), key=lambda key: key.created_at))

    def delete(self, key_id: str) -> bool:
        with store_errors():
            pipeline = self._client.pipeline()
            pipeline.hdel(_KEYS, key_id)
            pipeline.hdel(_USED, key_id)
            pipeline.delete(f"lensd:rate:{key_id}")
            return bool(pipeline.execute()[0])

    def revoke(self, key_id: str) -> Revocation:
        return Revocation(self._scripts.run("key_revoke", key_id, _now()).decode())


def _now() -> str:
    """The gateway's time as keys say theirs, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
