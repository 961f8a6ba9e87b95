"""The way out: one POST to a tenant's endpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from services.contracts.webhook import FailureReason

TIMEOUT_S = 15.0
"""For a whole try, from looking up the host to the last byte of the answer."""


@dataclass(frozen=True)
class Reply:
    """What came of a POST: the status of an answer, or the reason why there was none."""

    status: int | None = None
    reason: FailureReason | None = None

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """The receiver wants nothing any more."""
        return self.status == 410

    @property
    def failure(self) -> FailureReason | None:
        return self.reason if self.status is None else None if self.accepted else "status"


class Poster(Protocol):
    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Takes `TIMEOUT_S` at most, follows no redirect, and raises nothing for what a receiver does."""
