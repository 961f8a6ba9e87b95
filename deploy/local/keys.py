"""API keys of the local stack: the first one, shown to the one person it is for, and passing ones."""

import os
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
from services.tenants.keys import KeyStore, Scope, ensure_first_key, new_key, parse_strong_key

FILE = "api-key"


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


def hand_over(plaintext: str, home: Path, terminal: IO[str]) -> None:
    """Prints the key on the terminal, or writes it to a file only its owner can read when there is no terminal."""
    if terminal.isatty():
        print(f"\n  API key: {plaintext}\n  Keep it: it is not shown again.\n", file=terminal, flush=True)
        return
    path = home / FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{plaintext}\n")
    print(f"the first API key is in {path}", file=terminal, flush=True)


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
