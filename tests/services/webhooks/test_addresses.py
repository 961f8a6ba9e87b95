"""Which addresses count as public, in every spelling that a packet could take to a private one."""

import pytest

from services.webhooks.addresses import is_public, may_be_trusted

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001::200e"]
EMBEDDING_PUBLIC = ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1"]
LOOPBACK = ["127.0.0.1", "127.255.0.9", "::1"]
LINK_LOCAL = ["169.254.0.1", "fe80::1", "fe80::1%eth0"]
METADATA = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"]
SPECIAL = [
    "0.0.0.0",
    "0.1.2.3",
    "100.64.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "100::1",
    "2001:2::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
    "fec0::1",
    "ff02::1",
]
EMBEDDING = [
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "::8.8.8.8",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::",
    "2002:c0a8:101::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::a00:1",
    "64:ff9b:1::808:808",
    "2001:0:808:808:0:0:f5ff:fffe",
    "2606:4700::5efe:7f00:1",
    "2606:4700::200:5efe:a00:1",
]
NO_ADDRESS = ["", "localhost", "127.1", "0177.0.0.1", "2130706433", "0x7f000001", "1.2.3.4.5", "8.8.8.8 ", "[::1]"]


@pytest.mark.parametrize("address", PUBLIC + EMBEDDING_PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE + LOOPBACK + LINK_LOCAL + METADATA + SPECIAL + EMBEDDING + NO_ADDRESS)
def test_every_other_is_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC + PRIVATE + LOOPBACK)
def test_an_operator_may_let_tenants_reach_hosts_of_its_own(address: str) -> None:
    assert may_be_trusted(address)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "fe80::1",
        "168.63.129.16",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "fd00:ec2::254",
        "localhost",
    ],
)
def test_not_even_an_operators_word_leads_to_where_clouds_keep_credentials(address: str) -> None:
    assert not may_be_trusted(address)
