"""The fake of the key store, for tests."""

from services.tenants.keys import ApiKey


class MemoryKeyStore:
    def __init__(self) -> None:
        self._keys: dict[str, ApiKey] = {}

    def get(self, key_id: str) -> ApiKey | None:
        return self._keys.get(key_id)

    def put(self, key: ApiKey) -> None:
        self._keys[key.id] = key

    def put_first(self, key: ApiKey) -> bool:
        if self._keys:
            return False
        self.put(key)
        return True

    def list(self) -> tuple[ApiKey, ...]:
        return tuple(sorted(self._keys.values(), key=lambda key: key.created_at))

    def delete(self, key_id: str) -> bool:
        return self._keys.pop(key_id, None) is not None
