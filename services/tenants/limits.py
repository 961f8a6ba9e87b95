"""What a key may do: the operator's defaults, and what one key has instead."""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar

from pydantic import Field

from services.contracts.base import Contract
from services.jobs.limits import OwnerLimits

SLOWEST = 0.001
"""Requests a second that a rate allows at least: an allowance that takes centuries to fill cannot be told in dates."""


@dataclass(frozen=True)
class Rate:
    """A token bucket: `burst` requests at once, refilled at `per_second`."""

    per_second: float = 1_000.0
    burst: int = 10_000

    @property
    def window_s(self) -> float:
        """Seconds in which an empty bucket fills."""
        return self.burst / self.per_second


@dataclass(frozen=True)
class RateStanding:
    """How a key stands after one more request."""

    rate: Rate
    allowed: bool
    remaining: int
    """Requests that it may make at once."""
    full_in_s: float
    """Seconds until the whole burst is there again."""
    retry_after_s: float
    """Seconds until one request is allowed; 0 if one is now."""


class KeyLimits(Contract):
    """What one key has instead of the operator's defaults; null leaves the default."""

    requests_per_second: Annotated[float | None, Field(ge=SLOWEST, le=1_000_000)] = None
    burst: Annotated[int | None, Field(ge=1, le=1_000_000, description="Requests at once.")] = None
    jobs: Annotated[int | None, Field(ge=0, le=1_000_000, description="Queued and running jobs of the owner.")] = None
    running: Annotated[int | None, Field(ge=1, le=100_000, description="Running jobs of the owner.")] = None
    queue_share: Annotated[
        float | None, Field(gt=0, le=1, description="Share of the queue that the owner's jobs may fill.")
    ] = None
    daily_token_layers: Annotated[
        int | None, Field(ge=0, le=10**15, description="The owner's engine work a day (UTC), in token-layers.")
    ] = None


@dataclass(frozen=True)
class TenantLimits:
    """The operator's defaults."""

    rate: Rate = field(default_factory=Rate)
    jobs: OwnerLimits = field(default_factory=OwnerLimits)

    def rate_of(self, key: KeyLimits) -> Rate:
        return _overridden(self.rate, per_second=key.requests_per_second, burst=key.burst)

    def jobs_of(self, key: KeyLimits) -> OwnerLimits:
        return _overridden(self.jobs, **{bound.name: getattr(key, bound.name) for bound in fields(OwnerLimits)})


DEFAULTS = TenantLimits()
"""Generous: one person alone never meets them."""

Bounds = TypeVar("Bounds", Rate, OwnerLimits)


def _overridden(defaults: Bounds, **overrides: Any) -> Bounds:
    return replace(defaults, **{name: value for name, value in overrides.items() if value is not None})
