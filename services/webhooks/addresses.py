"""Which addresses of the network are everyone's: lensd sends to no others on a tenant's word.

Python's `is_global` follows the registries of its own release only, so what they list is listed here as well.
Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries; RFC 4291, 6052 (NAT64), 3056 (6to4), 4380 (Teredo),
5214 (ISATAP).
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
            # A public address that answers from inside one large cloud: its metadata.
            "168.63.129.16/32",
        ),
    )
)
_UNICAST_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = {0x00005EFE, 0x02005EFE}

_NEVER = tuple(
    map(IPv4Network, ("0.0.0.0/8", "169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32", "224.0.0.0/3"))
)
_NEVER_V6 = tuple(map(IPv6Network, ("::/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128")))


def is_public(text: str) -> bool:
    """Whether anyone on the internet could reach this address, and every IPv4 address that it embeds."""
    address = _parsed(text)
    if address is None:
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_V4)
    embedded = _embedded(address)
    if embedded is not None and not is_public(str(embedded)):
        return False
    # Whether Python calls these global changed between its releases; here the address that they embed decides.
    if address.ipv4_mapped is not None or address.sixtofour is not None or address in _NAT64:
        return True
    return address.is_global and address in _UNICAST_V6 and not any(address in each for each in _NOT_PUBLIC_V6)


def may_be_trusted(text: str) -> bool:
    """Whether an operator may let tenants reach it: never the link's own addresses, where clouds keep credentials."""
    address = _parsed(text)
    if isinstance(address, IPv6Address) and (embedded := _embedded(address)) is not None:
        address = embedded
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NEVER)
    return address is not None and not any(address in network for network in _NEVER_V6)


def _parsed(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a packet to this one may end at."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    low = int(address) & 0xFFFFFFFF
    if address in _NAT64 or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(low)
    return None
