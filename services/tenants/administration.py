"""What an administrator does with keys, by whichever way: each step is done, then put on record."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from services.contracts.errors import Conflict, ErrorCode, NotFound
from services.tenants.audit import AuditAction, AuditEvent, AuditLog, put_on_record
from services.tenants.keys import ApiKey, KeyStore, Revocation, Scope, new_key, rotated
from services.tenants.limits import KeyLimits


@dataclass(frozen=True)
class Actor:
    """Who acts: a key by its id, or `shell`; and in which request."""

    id: str
    request_id: str | None = None


SHELL = Actor("shell")
"""The operator at the command line, who needs no key."""


@dataclass(frozen=True)
class KeyWish:
    """What a new key is to be."""

    owner: str
    name: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] | None = None
    limits: KeyLimits = field(default_factory=KeyLimits)
    lifetime: timedelta | None = None


@dataclass(frozen=True)
class KeyAdministration:
    keys: KeyStore
    audit: AuditLog

    def create(self, wish: KeyWish, actor: Actor) -> tuple[str, ApiKey]:
        """A stored key and its plaintext, which nobody can look up again."""
        plaintext, key = new_key(wish.owner, wish.name, wish.scopes)
        expires_at = None if wish.lifetime is None else datetime.now(UTC) + wish.lifetime
        key = key.model_copy(update={"models": wish.models, "limits": wish.limits, "expires_at": expires_at})
        self.keys.put(key)
        details = {"owner": key.owner, "name": key.name, "scopes": " ".join(key.scopes)}
        self._record(AuditAction.KEY_CREATED, key.id, actor, details)
        return plaintext, key

    def rotate(self, key_id: str, overlap: timedelta, actor: Actor) -> tuple[str, ApiKey]:
        """The key with a fresh secret, and its plaintext; the old secret stays good for `overlap`.

        Raises NotFound(KEY_NOT_FOUND), and Conflict(KEY_CHANGED) when someone else changes it at the same time.
        """
        old = self.find(key_id)
        plaintext, key = rotated(old, overlap)
        if not self.keys.replace(old, key):
            raise Conflict(ErrorCode.KEY_CHANGED, f"the key {key_id} was changed meanwhile: look at it and try again")
        self._record(AuditAction.KEY_ROTATED, key_id, actor, {"overlap_s": f"{overlap.total_seconds():.0f}"})
        return plaintext, key

    def revoke(self, key_id: str, actor: Actor, *, even_the_last: bool = False) -> None:
        """Forget a key: from now on it opens nothing.

        Raises NotFound(KEY_NOT_FOUND), and Conflict(LAST_ADMIN_KEY) for the last one with the scope `admin`, unless
        `even_the_last`.
        """
        if even_the_last:
            outcome = Revocation.DONE if self.keys.delete(key_id) else Revocation.UNKNOWN
        else:
            outcome = self.keys.revoke(key_id)
        if outcome is Revocation.UNKNOWN:
            raise _not_found(key_id)
        if outcome is Revocation.LAST_ADMIN:
            raise Conflict(
                ErrorCode.LAST_ADMIN_KEY,
                f"{key_id} is the last key with the scope admin: make another one first, or nobody could make keys "
                "over HTTP any more (`lensd keys revoke --even-the-last` does it all the same)",
            )
        self._record(AuditAction.KEY_REVOKED, key_id, actor, {})

    def find(self, key_id: str) -> ApiKey:
        """Raises NotFound(KEY_NOT_FOUND)."""
        key = self.keys.get(key_id)
        if key is None:
            raise _not_found(key_id)
        return key

    def _record(self, action: AuditAction, target: str, actor: Actor, details: dict[str, str]) -> None:
        event = AuditEvent(action=action, actor=actor.id, target=target, details=details, request_id=actor.request_id)
        put_on_record(self.audit, event)


def _not_found(key_id: str) -> NotFound:
    return NotFound(ErrorCode.KEY_NOT_FOUND, f"there is no key {key_id!r}: it never was, or it has been revoked")
