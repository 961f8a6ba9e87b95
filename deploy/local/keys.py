"""API keys of the local stack: the first one, shown to the one person it is for, and passing ones."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from deploy.local.errors import LaunchError
from services.adapters.redis_client import make_client
from services.adapters.redis_keys import RedisKeyStore
from services.contracts.errors import Refused, Unavailable
from services.tenants.handover import hand_over
from services.tenants.keys import KeyStore, Scope, ensure_first_key, new_key, parse_strong_key


@contextmanager
def open_key_store(redis_url: str) -> Iterator[KeyStore]:
    """The keys of the stack whose Valkey is at `redis_url`."""
    client = make_client(redis_url, patient=False)
    try:
        yield RedisKeyStore(client)
    finally:
        client.close()


def refuse_a_weak_key(bootstrap: SecretStr | None) -> None:
    """Raises LaunchError for a key that somebody made up."""
    try:
        if bootstrap is not None:
            parse_strong_key(bootstrap.get_secret_value())
    except Refused as refusal:
        raise LaunchError(f"LENSD_BOOTSTRAP_KEY: {refusal}") from refusal


def make_sure_of_a_key(store: KeyStore, bootstrap: SecretStr | None, home: Path, terminal: IO[str]) -> None:
    """Sees to it that there is an API key, and hands a fresh one over."""
    fresh = ensure_first_key(store, None if bootstrap is None else bootstrap.get_secret_value())
    if fresh is not None:
        hand_over(fresh, home, terminal)


@contextmanager
def passing_key(store: KeyStore, name: str, lifetime: timedelta) -> Iterator[str]:
    """A key that is forgotten when the block ends, and void after `lifetime` in any case."""
    plaintext, record = new_key(name, name, (Scope.JOBS, Scope.READ))
    store.put(record.model_copy(update={"expires_at": datetime.now(UTC) + lifetime}))
    try:
        yield plaintext
    finally:
        with suppress(Unavailable):
            store.delete(record.id)
