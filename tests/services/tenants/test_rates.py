"""How often a key may ask, and what becomes of keys: the fake and the real store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from services.adapters.redis_audit import RedisAuditLog
from services.adapters.redis_client import make_client
from services.adapters.redis_keys import RedisKeyStore
from services.contracts.errors import Conflict, ErrorCode, NotFound, Refused
from services.tenants.administration import SHELL, Actor, KeyAdministration, KeyWish
from services.tenants.audit import AuditAction
from services.tenants.keys import KeyStore, Scope, authenticate, new_key
from services.tenants.limits import KeyLimits, Rate, TenantLimits
from services.tenants.memory import MemoryAuditLog, MemoryKeyStore

SLOW = TenantLimits(rate=Rate(per_second=0.01, burst=3))


@pytest.fixture(params=["memory", "valkey"])
def administration(request: pytest.FixtureRequest) -> KeyAdministration:
    if request.param == "memory":
        return KeyAdministration(MemoryKeyStore(), MemoryAuditLog())
    client = make_client(request.getfixturevalue("redis_url"), patient=False)
    return KeyAdministration(RedisKeyStore(client), RedisAuditLog(client))


@pytest.fixture
def keys(administration: KeyAdministration) -> KeyStore:
    return administration.keys


def test_a_key_asks_as_often_as_its_burst_and_is_told_when_to_come_back(keys: KeyStore) -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.READ,))
    keys.put(key)
    standings = [authenticate(keys, plaintext, SLOW).standing for _ in range(5)]
    assert [standing.allowed for standing in standings] == [True, True, True, False, False]
    assert [standing.remaining for standing in standings] == [2, 1, 0, 0, 0]
    assert 0 < standings[0].full_in_s <= 100 < standings[1].full_in_s <= 200 < standings[4].full_in_s <= 300
    assert standings[2].retry_after_s == 0
    assert 90 < standings[4].retry_after_s <= 100


def test_a_rate_holds_over_everyone_who_asks_at_once(keys: KeyStore) -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.READ,))
    keys.put(key)
    with ThreadPoolExecutor(8) as threads:
        allowed = list(threads.map(lambda _: authenticate(keys, plaintext, SLOW).standing.allowed, range(40)))
    assert sum(allowed) == 3


def test_one_keys_rate_is_not_anothers(keys: KeyStore) -> None:
    (one, first), (other, second) = (new_key("ada", name, (Scope.READ,)) for name in ("one", "other"))
    keys.put(first)
    keys.put(second)
    for _ in range(4):
        authenticate(keys, one, SLOW)
    assert authenticate(keys, other, SLOW).standing.allowed


def test_a_key_may_have_a_rate_of_its_own(keys: KeyStore) -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.READ,))
    keys.put(key.model_copy(update={"limits": KeyLimits(requests_per_second=0.5, burst=1)}))
    first, second = (authenticate(keys, plaintext).standing for _ in range(2))
    assert first.rate == Rate(0.5, 1)
    assert (first.allowed, second.allowed) == (True, False)
    assert 1 < second.retry_after_s <= 2


def test_a_wrong_secret_takes_nothing_from_a_keys_rate(keys: KeyStore) -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.READ,))
    keys.put(key)
    wrong = f"lensd_{key.id}_{new_key('x', 'x', ())[0].split('_', 2)[2]}"
    for _ in range(10):
        with pytest.raises(Refused):
            authenticate(keys, wrong, SLOW)
    assert keys.last_used() == {}
    assert authenticate(keys, plaintext, SLOW).standing.remaining == 2


def test_the_last_use_is_known_to_the_minute(keys: KeyStore) -> None:
    plaintext, key = new_key("ada", "laptop", (Scope.READ,))
    keys.put(key)
    assert keys.last_used() == {}
    authenticate(keys, plaintext)
    used = keys.last_used()[key.id]
    assert abs(datetime.now(UTC) - used) < timedelta(seconds=62)
    keys.delete(key.id)
    assert keys.last_used() == {}


def test_a_rotated_key_opens_with_both_secrets_only_while_they_overlap(administration: KeyAdministration) -> None:
    keys = administration.keys
    first, key = administration.create(KeyWish("ada", "ci", (Scope.READ,), models=("tiny",)), SHELL)
    second, rotated = administration.rotate(key.id, timedelta(hours=1), SHELL)
    assert rotated.model_copy(update={"secret_sha256": key.secret_sha256, "retiring": None}) == key
    assert authenticate(keys, first).key == authenticate(keys, second).key == rotated
    assert rotated.retiring is not None
    ended = rotated.retiring.model_copy(update={"until": datetime.now(UTC) - timedelta(seconds=2)})
    keys.put(rotated.model_copy(update={"retiring": ended}))
    authenticate(keys, second)
    with pytest.raises(Refused):
        authenticate(keys, first)
    third, _ = administration.rotate(key.id, timedelta(0), SHELL)
    authenticate(keys, third)
    with pytest.raises(Refused):
        authenticate(keys, second)


def test_a_key_that_was_revoked_meanwhile_is_not_brought_back_by_rotating_it(keys: KeyStore) -> None:
    _, key = new_key("ada", "laptop", (Scope.READ,))
    keys.put(key)
    keys.delete(key.id)
    assert not keys.replace(key, key.model_copy(update={"name": "other"}))
    assert keys.get(key.id) is None


def test_the_last_admin_key_that_lives_is_not_revoked_by_accident(administration: KeyAdministration) -> None:
    _, admin = administration.create(KeyWish("ada", "admin", (Scope.ADMIN,)), SHELL)
    _, reader = administration.create(KeyWish("ada", "reader", (Scope.READ,)), SHELL)
    _, ended = administration.create(KeyWish("ada", "ended", (Scope.ADMIN,)), SHELL)
    administration.keys.put(ended.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(minutes=1)}))
    with pytest.raises(Conflict) as refusal:
        administration.revoke(admin.id, SHELL)
    assert refusal.value.code is ErrorCode.LAST_ADMIN_KEY
    administration.revoke(reader.id, SHELL)
    administration.revoke(ended.id, SHELL)
    _, other = administration.create(KeyWish("ada", "other", (Scope.ADMIN,), lifetime=timedelta(days=1)), SHELL)
    administration.revoke(admin.id, SHELL)
    administration.revoke(other.id, SHELL, even_the_last=True)
    assert administration.keys.list() == ()


def test_of_two_admins_who_revoke_each_other_at_once_one_is_left(administration: KeyAdministration) -> None:
    made = [administration.create(KeyWish("ada", "admin", (Scope.ADMIN,)), SHELL)[1].id for _ in range(2)]

    def revoke(key_id: str) -> bool:
        try:
            administration.revoke(key_id, SHELL)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(revoke, made)) == [False, True]


def test_a_key_that_is_not_there_is_neither_rotated_nor_revoked(administration: KeyAdministration) -> None:
    for act in (
        lambda: administration.revoke("aaaaaaaaaaaa", SHELL),
        lambda: administration.revoke("aaaaaaaaaaaa", SHELL, even_the_last=True),
        lambda: administration.rotate("aaaaaaaaaaaa", timedelta(0), SHELL),
    ):
        with pytest.raises(NotFound):
            act()
    assert administration.audit.page(None, 10).entries == ()


def test_what_is_done_to_keys_is_on_record_without_secrets(administration: KeyAdministration) -> None:
    plaintext, key = administration.create(KeyWish("ada", "ci", (Scope.READ,)), SHELL)
    fresh, _ = administration.rotate(key.id, timedelta(seconds=5), Actor("abc", "req_1"))
    administration.revoke(key.id, Actor("abc", "req_2"))
    page = administration.audit.page(None, 2)
    older = administration.audit.page(page.cursor, 2)
    assert [(each.action, each.actor, each.target, each.request_id) for each in (*page.entries, *older.entries)] == [
        (AuditAction.KEY_REVOKED, "abc", key.id, "req_2"),
        (AuditAction.KEY_ROTATED, "abc", key.id, "req_1"),
        (AuditAction.KEY_CREATED, "shell", key.id, None),
    ]
    assert older.cursor is None
    kept = page.model_dump_json() + older.model_dump_json()
    for secret in (plaintext.split("_", 2)[2], fresh.split("_", 2)[2], key.secret_sha256):
        assert secret not in kept


@pytest.mark.parametrize("cursor", ["", "nonsense", "1-", "9" * 40 + "-0", "(1-0", "0-0", "00-000"])
def test_a_cursor_that_is_not_ours_is_refused(administration: KeyAdministration, cursor: str) -> None:
    with pytest.raises(Refused):
        administration.audit.page(cursor, 10)


@pytest.mark.parametrize("cursor", ["0-1", "1-0", "9" * 15 + "-" + "9" * 15])
def test_a_cursor_that_could_be_ours_gives_what_is_before_it(administration: KeyAdministration, cursor: str) -> None:
    administration.create(KeyWish("ada", "ci", (Scope.READ,)), SHELL)
    assert len(administration.audit.page(cursor, 10).entries) == cursor.startswith("9")
