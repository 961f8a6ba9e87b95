"""The audit log: what was done to keys and shared labels, or refused, by whom, in which request. Never a secret."""

import logging
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import Field

from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, Refused

log = logging.getLogger("lensd.audit")

# There is nothing before 0-0, and Redis refuses to look.
_ID = re.compile(r"(?!0+-0+$)[0-9]{1,15}-[0-9]{1,15}")


class AuditAction(StrEnum):
    KEY_CREATED = "key_created"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    LABELS_SHARED = "labels_shared"
    SHARED_LABEL_DELETED = "shared_label_deleted"
    ADMIN_REFUSED = "admin_refused"


class AuditEvent(Contract):
    """Something that was done."""

    action: AuditAction
    actor: Annotated[str, Field(description="The id of the key that did it; `shell` for the operator's command line.")]
    target: Annotated[str, Field(description="The id of the key it was done to, or of the SAE, or what was refused.")]
    details: dict[str, str] = {}
    request_id: str | None = None


class AuditEntry(AuditEvent):
    """An event as the log keeps it."""

    id: str
    at: datetime


class AuditPage(Contract):
    """Entries, newest first."""

    entries: tuple[AuditEntry, ...]
    cursor: Annotated[str | None, Field(description="Ask for the next page with it; null on the last one.")]


def put_on_record(audit: "AuditLog", event: AuditEvent) -> None:
    """Into the log that administrators read, and the process's own; raises Unavailable(STORE_UNAVAILABLE)."""
    log.info("%s %s by %s", event.action, event.target, event.actor, extra={"fields": event.details})
    audit.record(event)


def check_cursor(cursor: str | None) -> None:
    """Raises Refused(INVALID_REQUEST) on a cursor that cannot be the id of an entry."""
    if cursor is not None and not _ID.fullmatch(cursor):
        raise Refused(ErrorCode.INVALID_REQUEST, "this cursor is not one that a page came with")


class AuditLog(Protocol):
    """Keeps the latest entries, some ten thousand."""

    def record(self, event: AuditEvent) -> None:
        """Raises Unavailable(STORE_UNAVAILABLE)."""

    def page(self, cursor: str | None, limit: int) -> AuditPage:
        """The newest entries, or those before `cursor`; raises Refused(INVALID_REQUEST) on one that is not ours."""
