"""API keys: `lensd_<id>_<secret>`, the secret 256 random bits of which only the SHA-256 is kept."""

import base64
import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, Refused

_KEY = re.compile(r"lensd_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")
_MIN_DISTINCT_CHARACTERS = 16


class Scope(StrEnum):
    JOBS = "jobs"
    READ = "read"
    ADMIN = "admin"


class ApiKey(Contract):
    """What is kept of a key. `owner` is the tenant: everything a key makes belongs to it."""

    id: str
    owner: str
    secret_sha256: str
    scopes: tuple[Scope, ...]
    name: str
    created_at: datetime
    expires_at: datetime | None = None


class KeyStore(Protocol):
    def get(self, key_id: str) -> ApiKey | None: ...

    def put(self, key: ApiKey) -> None: ...

    def put_first(self, key: ApiKey) -> bool:
        """Store the key only if there is none at all yet; whether it was stored."""

    def list(self) -> tuple[ApiKey, ...]: ...

    def delete(self, key_id: str) -> bool: ...


def new_key(owner: str, name: str, scopes: tuple[Scope, ...]) -> tuple[str, ApiKey]:
    """A fresh key: the plaintext, shown once, and what to keep."""
    key_id = base64.b32encode(secrets.token_bytes(8)).decode().lower()[:12]
    plaintext = f"lensd_{key_id}_{secrets.token_urlsafe(32)}"
    return plaintext, _record(plaintext, owner, name, scopes)


def parse_strong_key(plaintext: str) -> None:
    """Refuse a key that an operator made up: wrong form, or a secret without enough variety to be random."""
    match = _KEY.fullmatch(plaintext)
    if match is None:
        raise Refused(
            ErrorCode.UNAUTHENTICATED,
            "an API key has the form lensd_<id>_<secret>: 12 characters of a-z2-7, then 43 of base64url; "
            "`lensd keys new` makes one",
        )
    if len(set(match[2])) < _MIN_DISTINCT_CHARACTERS:
        raise Refused(
            ErrorCode.UNAUTHENTICATED,
            "this API key's secret is too regular to be random: make one with `lensd keys new`",
        )


def ensure_first_key(store: KeyStore, bootstrap: str | None) -> str | None:
    """Make sure that some key exists: `bootstrap` if given (idempotent), else a fresh one when there is none.

    Returns the plaintext only when a fresh key was made, so that it is shown once.
    """
    scopes = tuple(Scope)
    if bootstrap is not None:
        parse_strong_key(bootstrap)
        record = _record(bootstrap, owner="operator", name="bootstrap", scopes=scopes)
        if store.get(record.id) is None:
            store.put(record)
        return None
    plaintext, record = new_key(owner="operator", name="first key", scopes=scopes)
    return plaintext if store.put_first(record) else None


def authenticate(store: KeyStore, plaintext: str) -> ApiKey:
    """The key's record; raises Refused(UNAUTHENTICATED) alike for a wrong form, id, secret or an expired key."""
    refusal = Refused(ErrorCode.UNAUTHENTICATED, "this API key is not valid: send `Authorization: Bearer lensd_…`")
    match = _KEY.fullmatch(plaintext)
    if match is None:
        raise refusal
    key = store.get(match[1])
    expected = key.secret_sha256 if key else "0" * 64
    matches = hmac.compare_digest(_digest(match[2]), expected)
    if key is None or not matches or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
        raise refusal
    return key


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _record(plaintext: str, owner: str, name: str, scopes: tuple[Scope, ...]) -> ApiKey:
    _, key_id, secret = plaintext.split("_", 2)
    return ApiKey(
        id=key_id,
        owner=owner,
        secret_sha256=_digest(secret),
        scopes=scopes,
        name=name,
        created_at=datetime.now(UTC),
    )
