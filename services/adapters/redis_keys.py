"""API keys in Redis: the hash `lensd:keys`, one JSON document per key id."""

from typing import cast

from redis import Redis

from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_client import store_errors
from services.tenants.keys import ApiKey

_KEYS = "lensd:keys"


class RedisKeyStore:
    """Implements `services.tenants.keys.KeyStore`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._scripts = LuaScripts(client)

    def get(self, key_id: str) -> ApiKey | None:
        with store_errors():
            document = cast("bytes | None", self._client.hget(_KEYS, key_id))
        return None if document is None else ApiKey.model_validate_json(document)

    def put(self, key: ApiKey) -> None:
        with store_errors():
            self._client.hset(_KEYS, key.id, key.model_dump_json())

    def put_first(self, key: ApiKey) -> bool:
        return bool(self._scripts.run("key_put_first", key.id, key.model_dump_json()))

    def list(self) -> tuple[ApiKey, ...]:
        with store_errors():
            documents = cast("list[bytes]", self._client.hvals(_KEYS))
        return tuple(sorted(map(ApiKey.model_validate_json, documents), key=lambda key: key.created_at))

    def delete(self, key_id: str) -> bool:
        with store_errors():
            return self._client.hdel(_KEYS, key_id) == 1
