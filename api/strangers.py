"""Who cannot say who they are, and too often: a rate of failed authentications per address.

Addresses are counted in this process alone, so that a flood of them costs the store nothing. An address that is over
its rate is refused before the store is asked, but for a credential that has opened before: a stranger who shares an
address with a tenant, behind a proxy or in one office, does not lock the tenant out.
"""

import hashlib
import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from services.contracts.errors import ErrorCode, Limited
from services.tenants.limits import Rate

GENEROUS = Rate(per_second=10.0, burst=1_000)
"""A person never meets it, nor a client that tries an old key for a while."""

REMEMBERED = 10_000
"""Addresses, and credentials: the latest ones."""

_IPV6_NETWORK = 64
"""Bits that one subscriber's addresses have in common."""


class Strangers:
    """Safe to use from several threads."""

    def __init__(self, rate: Rate = GENEROUS, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at = _Latest()
        """Network → when its allowance is full again (GCRA)."""
        self._opened = _Latest()
        """Digests of credentials → when they opened last."""

    def check(self, address: str, credential: str) -> None:
        """Raises Limited(RATE_LIMITED) when the address has failed too often and the credential has opened nothing."""
        with self._lock:
            full_at = self._full_at.get(_network(address))
            known = _digest(credential) in self._opened
        if full_at is None or known:
            return
        short_s = full_at + 1 / self._rate.per_second - self._clock() - self._rate.window_s
        if short_s > 0:
            message = (
                "too many requests without a valid API key came from this address: wait as long as Retry-After says"
            )
            raise Limited(ErrorCode.RATE_LIMITED, message, retry_after_s=math.ceil(short_s))

    def failed(self, address: str) -> None:
        """Takes one failure from the address's allowance."""
        network = _network(address)
        with self._lock:
            full_at = max(self._clock(), self._full_at.get(network, 0.0)) + 1 / self._rate.per_second
            self._full_at.remember(network, full_at)

    def opened(self, credential: str) -> None:
        with self._lock:
            self._opened.remember(_digest(credential), self._clock())


class _Latest(OrderedDict[str, float]):
    """The latest moments that were noted, and no more than fit."""

    def remember(self, name: str, moment: float) -> None:
        self[name] = moment
        self.move_to_end(name)
        if len(self) > REMEMBERED:
            self.popitem(last=False)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((parsed, _IPV6_NETWORK), strict=False))
    return address


def _digest(credential: str) -> str:
    return hashlib.sha256(credential.encode()).hexdigest()
