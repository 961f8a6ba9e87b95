"""When the reaper may do what."""

from datetime import datetime, timedelta

from services.jobs.policy import JobPolicy


class Rounds:
    """Rounds of the reaper keep a distance; after a long pause, leases are spared for the length of one."""

    def __init__(self, policy: JobPolicy) -> None:
        self._policy = policy
        self._last: datetime | None = None
        self._swept: datetime | None = None
        self._spared_until: datetime | None = None

    def begin(self, now: datetime) -> bool:
        """Whether a round is due; if so it has begun."""
        pause = None if self._last is None else (now - self._last).total_seconds()
        if pause is not None and pause < self._policy.reap_every_s:
            return False
        if pause is not None and pause > self._policy.outage_s:
            self._spared_until = now + timedelta(seconds=self._policy.lease_s)
        self._last = now
        return True

    def spares_leases(self, now: datetime) -> bool:
        return self._spared_until is not None and now < self._spared_until

    def sweeps(self, now: datetime) -> bool:
        """Whether blobs are to be swept in this round."""
        if self._swept and (now - self._swept).total_seconds() < self._policy.sweep_every_s:
            return False
        self._swept = now
        return True
