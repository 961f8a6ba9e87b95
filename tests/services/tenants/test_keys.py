"""API keys, and the stores that keep them: the fake and the real one."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from services.adapters.redis_client import make_client
from services.adapters.redis_keys import RedisKeyStore
from services.contracts.errors import ErrorCode, Refused
from services.tenants.keys import KeyStore, Scope, authenticate, ensure_first_key, new_key, parse_strong_key
from services.tenants.memory import MemoryKeyStore


@pytest.fixture(params=["memory", "valkey"])
def keys(request: pytest.FixtureRequest) -> KeyStore:
    if request.param == "memory":
        return MemoryKeyStore()
    return RedisKeyStore(make_client(request.getfixturevalue("redis_url"), patient=False))


def test_a_stored_key_comes_back_as_it_was(keys: KeyStore) -> None:
    _, key = new_key("ada", "laptop", (Scope.JOBS, Scope.READ))
    keys.put(key)
    assert keys.get(key.id) == key
    assert keys.list() == (key,)


def test_keys_are_listed_in_the_order_of_their_making(keys: KeyStore) -> None:
    made = [new_key("ada", str(i), (Scope.READ,))[1] for i in range(5)]
    for key in reversed(made):
        keys.put(key)
    assert keys.list() == tuple(made)


def test_a_deleted_key_is_gone(keys: KeyStore) -> None:
    _, key = new_key("ada", "laptop", (Scope.READ,))
    keys.put(key)
    assert keys.delete(key.id)
    assert not keys.delete(key.id)
    assert keys.get(key.id) is None


def test_only_one_of_many_processes_makes_the_first_key(keys: KeyStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        plaintexts = list(threads.map(lambda _: ensure_first_key(keys, None), range(8)))
    assert len(keys.list()) == 1
    (shown,) = [plaintext for plaintext in plaintexts if plaintext]
    assert authenticate(keys, shown).key.scopes == tuple(Scope)


def test_a_bootstrap_key_works_beside_others_and_is_never_shown(keys: KeyStore) -> None:
    ensure_first_key(keys, None)
    bootstrap, _ = new_key("x", "x", ())
    assert ensure_first_key(keys, bootstrap) is None
    assert ensure_first_key(keys, bootstrap) is None
    assert len(keys.list()) == 2
    assert authenticate(keys, bootstrap).key.owner == "operator"


def test_a_key_opens_only_with_its_own_secret(keys: KeyStore) -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.JOBS,))
    other, _ = new_key("ada", "laptop", (Scope.JOBS,))
    keys.put(key)
    assert authenticate(keys, plaintext).key == key
    mixed = f"lensd_{key.id}_{other.split('_', 2)[2]}"
    for wrong in ("", "lensd", other, mixed, plaintext[:-1], plaintext + "a", plaintext + "\n", "Bearer " + plaintext):
        with pytest.raises(Refused) as refusal:
            authenticate(keys, wrong)
        assert refusal.value.code is ErrorCode.UNAUTHENTICATED


def test_an_expired_key_opens_nothing(keys: KeyStore) -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.JOBS,))
    keys.put(key.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)}))
    with pytest.raises(Refused):
        authenticate(keys, plaintext)


def test_no_plaintext_is_kept() -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.JOBS,))
    assert plaintext.split("_", 2)[2] not in key.model_dump_json()


@pytest.mark.parametrize(
    "weak", ["changeme", "lensd_aaaaaaaaaaaa_" + "a" * 43, "lensd_AAAAAAAAAAAA_" + "a" * 43, "lensd_abc_def"]
)
def test_a_weak_bootstrap_key_is_refused(weak: str) -> None:
    with pytest.raises(Refused):
        parse_strong_key(weak)
    with pytest.raises(Refused):
        ensure_first_key(MemoryKeyStore(), weak)
