"""API keys: `lensd_<id>_<secret>`, the secret 256 random bits of which only the SHA-256 is kept."""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.errors import ErrorCode, Refused
from services.tenants.limits import DEFAULTS, KeyLimits, RateStanding, TenantLimits

_KEY = re.compile(r"lensd_([a-z2-7]{12})_([A-Za-z0-9_-]{43})")
_MIN_DISTINCT_CHARACTERS = 16

MAX_DAYS = 36_500
"""How long after its making a key may expire."""

MAX_OVERLAP_S = 30 * 24 * 3600
"""How long the secret before a rotation may stay good."""


class Scope(StrEnum):
    JOBS = "jobs"
    READ = "read"
    ADMIN = "admin"


Owner = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$", examples=["evaluations"])]
KeyName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class RetiringSecret(Contract):
    """The secret before the last rotation, good for a while longer."""

    secret_sha256: str
    until: datetime


class ApiKey(Contract):
    """What is kept of a key. `owner` is the tenant: everything a key makes belongs to it."""

    id: str
    owner: str
    secret_sha256: str
    retiring: RetiringSecret | None = None
    scopes: tuple[Scope, ...]
    models: tuple[CatalogueId, ...] | None = None
    """The models it may use, each with its SAEs; None: all."""
    limits: KeyLimits = KeyLimits()
    name: str
    created_at: datetime
    expires_at: datetime | None = None

    def opens_with(self, secret_sha256: str, now: datetime) -> bool:
        """Whether the key is good at `now` with the secret that has this digest."""
        matches = hmac.compare_digest(secret_sha256, self.secret_sha256)
        if self.retiring is not None and hmac.compare_digest(secret_sha256, self.retiring.secret_sha256):
            matches = matches or now < self.retiring.until
        return matches and self.lives(now)

    def still_opens(self, current: "ApiKey | None", now: datetime) -> bool:
        """Whether what opened with this key would still open it at `now`, as it is kept by then (None: not at all)."""
        secrets_then = (
            [self.secret_sha256] if self.retiring is None else [self.secret_sha256, self.retiring.secret_sha256]
        )
        return current is not None and any(current.opens_with(secret, now) for secret in secrets_then)

    def lives(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True)
class Admitted:
    """A key that opened, and how it stands with its rate after this request."""

    key: ApiKey
    standing: RateStanding


class Revocation(StrEnum):
    """What came of revoking a key."""

    DONE = "done"
    UNKNOWN = "unknown"
    LAST_ADMIN = "last_admin"


class KeyStore(Protocol):
    """Keys by id. Every request asks the store anew: a key that is gone opens nothing, in no gateway process."""

    def get(self, key_id: str) -> ApiKey | None: ...

    def use(self, key_id: str, secret_sha256: str, defaults: TenantLimits) -> Admitted | None:
        """Take one request from the allowance of the key, and note about once a minute that it was used.

        One round trip, whatever there are of keys. None, and nothing taken, if no live key has this id and secret.
        """

    def last_used(self) -> Mapping[str, datetime]:
        """Key id → when it was last used, to the minute."""

    def put(self, key: ApiKey) -> None: ...

    def replace(self, old: ApiKey, new: ApiKey) -> bool:
        """Store `new` in the place of `old`, if that is what is stored; whether it was."""

    def put_first(self, key: ApiKey) -> bool:
        """Store the key only if there is none at all yet; whether it was stored."""

    def list(self) -> tuple[ApiKey, ...]: ...

    def delete(self, key_id: str) -> bool: ...

    def revoke(self, key_id: str) -> Revocation:
        """Delete a key, unless it is the last one that lives and has the scope `admin`."""


def new_key(owner: str, name: str, scopes: tuple[Scope, ...]) -> tuple[str, ApiKey]:
    """A fresh key: the plaintext, shown once, and what to keep."""
    key_id = base64.b32encode(secrets.token_bytes(8)).decode().lower()[:12]
    plaintext = _plaintext(key_id)
    return plaintext, _record(plaintext, owner, name, scopes)


def rotated(key: ApiKey, overlap: timedelta) -> tuple[str, ApiKey]:
    """The key with a fresh secret; the present one stays good for `overlap`, the one before it does not."""
    plaintext = _plaintext(key.id)
    retiring = RetiringSecret(secret_sha256=key.secret_sha256, until=datetime.now(UTC) + overlap) if overlap else None
    secret_sha256 = _digest(plaintext.split("_", 2)[2])
    return plaintext, key.model_copy(update={"secret_sha256": secret_sha256, "retiring": retiring})


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


def authenticate(store: KeyStore, plaintext: str, defaults: TenantLimits = DEFAULTS) -> Admitted:
    """The key that `plaintext` opens, and its standing, which may be that it has to wait.

    Raises Refused(UNAUTHENTICATED) alike for a wrong form, id or secret and an expired key.
    """
    match = _KEY.fullmatch(plaintext)
    digest = _digest(match[2]) if match else ""
    admitted = store.use(match[1], digest, defaults) if match else None
    if admitted is None or not admitted.key.opens_with(digest, datetime.now(UTC)):
        raise Refused(ErrorCode.UNAUTHENTICATED, "this API key is not valid: send `Authorization: Bearer lensd_…`")
    return admitted


def _plaintext(key_id: str) -> str:
    return f"lensd_{key_id}_{secrets.token_urlsafe(32)}"


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
