"""Which URLs lensd posts to on a tenant's word. They are read here once: the connection uses the parts found here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from services.contracts.errors import ErrorCode, InvalidSpec, Violation
from services.webhooks.addresses import is_public, may_be_trusted

MAX_URL_CHARACTERS = 2_000

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Target:
    """Where a message goes. `trusted`: by the operator, so that its addresses need not be public."""

    scheme: str
    host: str
    port: int
    path: str
    trusted: bool

    def admits(self, address: str) -> bool:
        """Whether a connection may be made to this address of the host's."""
        return may_be_trusted(address) if self.trusted else is_public(address)


@dataclass(frozen=True)
class UrlRules:
    """Public https on port 443, and whatever the operator trusts: `host`, or `host:port` for that port alone."""

    trusted_hosts: frozenset[str] = frozenset()

    def read(self, url: str) -> Target:
        """Raises InvalidSpec(INVALID_URL, at `/url`) for a URL that lensd does not post to."""
        target, reason = self._read(url)
        if target is None:
            raise InvalidSpec([Violation("/url", ErrorCode.INVALID_URL, f"this URL is not accepted: {reason}")])
        return target

    def _read(self, url: str) -> tuple[Target | None, str]:
        if not _VISIBLE.fullmatch(url) or len(url) > MAX_URL_CHARACTERS or "\\" in url:
            return None, f"it may have {MAX_URL_CHARACTERS:,} characters of visible ASCII, no backslash among them"
        try:
            parts = urlsplit(url)
            scheme, port = parts.scheme, parts.port
        except ValueError:
            return None, "it cannot be read"
        if scheme not in _DEFAULT_PORTS or not parts.hostname:
            return None, "it must start with https:// and name a host"
        if "@" in parts.netloc or "#" in url:
            return None, "it may have no user, password or fragment"
        host = parts.hostname
        if (reason := _why_no_host(host)) is not None:
            return None, reason
        port = _DEFAULT_PORTS[scheme] if port is None else port
        trusted = host in self.trusted_hosts or f"{_bracketed(host)}:{port}" in self.trusted_hosts
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = Target(scheme, host, port, path, trusted)
        return (target, "") if trusted else _public(target)


PUBLIC_ONLY = UrlRules()


def trusted_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """What the operator trusts, as `UrlRules` compares it; raises ValueError on what is no host."""
    trusted = frozenset(host.strip().lower() for host in hosts if host.strip())
    for entry in trusted:
        host, colon, port = entry.rpartition(":") if not entry.endswith("]") and ":" in entry else (entry, "", "")
        if _why_no_host(host.strip("[]")) is not None or (colon and not port.isdecimal()):
            raise ValueError(f"{entry!r} is not a host or host:port")
    return frozenset(entry.strip("[]") if entry.endswith("]") else entry for entry in trusted)


def _public(target: Target) -> tuple[Target | None, str]:
    if target.scheme != "https" or target.port != _DEFAULT_PORTS["https"]:
        return None, "it must be https on port 443"
    if ":" in target.host or _NUMBER.fullmatch(target.host.rpartition(".")[2]):
        return (target, "") if is_public(target.host) else (None, "its address is not a public one")
    if "." not in target.host:
        return None, "its host is not a public name"
    return target, ""


def _why_no_host(host: str) -> str | None:
    """A name in lower case, or an address in its one usual spelling: 2130706433, 0x7f.1 and 127.1 are neither."""
    if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]):
        if not _usual_address(host):
            return "its host is an address in an unusual spelling"
    elif len(host) > 253 or not _NAME.fullmatch(host):
        return "its host is not a name in ASCII (write others in their xn-- form)"
    return None


def _usual_address(host: str) -> bool:
    try:
        return "%" not in host and str(ip_address(host)) == host
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
