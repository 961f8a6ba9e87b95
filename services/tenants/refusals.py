"""Attempts to administer that were refused, put on record."""

import threading
import time
from collections.abc import Callable

from services.tenants.audit import AuditAction, AuditEvent, AuditLog, put_on_record

EVERY_S = 600.0


class Refusals:
    """One entry per key in ten minutes, with the number of attempts since the one before: a tenant must not be able to
    push out what else is on record. Counted in this process alone; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._attempts: dict[str, int] = {}
        self._recorded_at: dict[str, float] = {}

    def record(self, audit: AuditLog, key_id: str, target: str, request_id: str | None) -> None:
        """`key_id` lacks the scope `admin` and asked for `target`; raises Unavailable(STORE_UNAVAILABLE)."""
        with self._lock:
            now = self._clock()
            attempts = self._attempts.get(key_id, 0) + 1
            due = now - self._recorded_at.get(key_id, -EVERY_S) >= EVERY_S
            self._attempts[key_id] = 0 if due else attempts
            if due:
                self._recorded_at[key_id] = now
        if due:
            details = {"attempts": str(attempts)}
            event = AuditEvent(
                action=AuditAction.ADMIN_REFUSED, actor=key_id, target=target, details=details, request_id=request_id
            )
            put_on_record(audit, event)
