"""Which URLs are accepted, and that they are read as the connection will."""

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.contracts.errors import ErrorCode, InvalidSpec
from services.webhooks.urls import PUBLIC_ONLY, Target, UrlRules, trusted_hosts

TRUSTING = UrlRules(trusted_hosts(["hooks.internal", " 127.0.0.1:8080", "[::1]:9000", ""]))

REFUSED = [
    "",
    "hooks.example.com/x",
    "//hooks.example.com/x",
    "http://hooks.example.com/",
    "ftp://hooks.example.com/",
    "file:///etc/passwd",
    "https://",
    "https:///path",
    "https://hooks.example.com:8443/",
    "https://hooks.example.com:80/",
    "https://hooks.example.com:99999/",
    "https://hooks.example.com:x/",
    "https://user@hooks.example.com/",
    "https://user:secret@hooks.example.com/",
    "https://hooks.example.com@127.0.0.1/",
    "https://hooks.example.com#@evil.example.org/",
    "https://hooks.example.com/#fragment",
    "https://hooks.example.com\\@127.0.0.1/",
    "https://hooks.example.com /",
    "https://hooks.example.com/\r\nHost:x",
    "https://hooks.example.com/\t",
    "https://hooks.example.com./",
    "https://.example.com/",
    "https://hooks..example.com/",
    "https://-hooks.example.com/",
    "https://exämple.com/",
    "https://hooks.ex%61mple.com/",
    "https://localhost/",
    "https://metadata/",
    "https://127.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://127.0.0.0x1/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[fe80::1%25eth0]/",
    "https://[2606:4700::1111%25eth0]/",
    "https://[64:ff9b::7f00:1]/",
    "https://①②⑦.0.0.1/",
    "https://hooks.example.com/" + "x" * 2_000,
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_not_public_https_is_refused_where_the_body_says_it(url: str) -> None:
    with pytest.raises(InvalidSpec, match="this URL is not accepted") as refusal:
        PUBLIC_ONLY.read(url)
    (violation,) = refusal.value.violations
    assert (violation.pointer, violation.code) == ("/url", ErrorCode.INVALID_URL)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example.com", Target("https", "hooks.example.com", 443, "/", trusted=False)),
        ("HTTPS://Hooks.Example.COM:443/a/b?c=d", Target("https", "hooks.example.com", 443, "/a/b?c=d", trusted=False)),
        ("https://xn--exmple-cua.com/", Target("https", "xn--exmple-cua.com", 443, "/", trusted=False)),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "/", trusted=False)),
        ("https://[2606:4700::1111]/", Target("https", "2606:4700::1111", 443, "/", trusted=False)),
    ],
)
def test_public_https_is_accepted(url: str, target: Target) -> None:
    assert PUBLIC_ONLY.read(url) == target


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://hooks.internal/", 80),
        ("https://hooks.internal:8443/", 8443),
        ("http://127.0.0.1:8080/x", 8080),
        ("http://[::1]:9000/x", 9000),
    ],
)
def test_a_host_that_the_operator_trusts_needs_neither_tls_nor_a_public_address(url: str, port: int) -> None:
    target = TRUSTING.read(url)
    assert (target.port, target.trusted) == (port, True)
    assert target.admits("10.0.0.1")
    assert not target.admits("169.254.169.254")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8081/",
        "http://127.0.0.1/",
        "http://a.hooks.internal/",
        "http://hooks.internal.evil.com/",
        "http://hooks.internal@evil.com/",
        "http://127.1:8080/",
    ],
)
def test_trust_in_one_host_and_port_is_no_trust_in_another(url: str) -> None:
    with pytest.raises(InvalidSpec):
        TRUSTING.read(url)


def test_an_untrusted_host_may_have_public_addresses_alone() -> None:
    target = PUBLIC_ONLY.read("https://hooks.example.com/")
    assert target.admits("8.8.8.8")
    assert not target.admits("10.0.0.1")


@pytest.mark.parametrize("host", ["http://a.com", "a b", "a.com:x", "127.1", "*"])
def test_what_is_no_host_cannot_be_trusted(host: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        trusted_hosts([host])


_PIECES = [
    "https://",
    "http://",
    "//",
    "/",
    "\\",
    "@",
    ":",
    "#",
    "?",
    "%",
    ".",
    "-",
    "[",
    "]",
    "::1",
    "127.0.0.1",
    "443",
    "80",
    "hooks.example.com",
    "8.8.8.8",
    "localhost",
    "0x7f",
    "xn--a",
    "a",
    "\t",
    " ",
    "é",
    "%2f",
    "%40",
    "::ffff:",
]


_ASSEMBLED = st.lists(st.sampled_from(_PIECES), max_size=8).map("".join)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=40), _ASSEMBLED, _ASSEMBLED.map("https://hooks.example.com".__add__)))
@example("https://a.b:443@127.0.0.1/")
@example("https://a.b/@127.0.0.1")
@example("https://a.b?@127.0.0.1/")
def test_whatever_is_accepted_is_read_alike_by_another_parser(url: str) -> None:
    try:
        target = PUBLIC_ONLY.read(url)
    except InvalidSpec:
        return
    other = httpx.URL(url)
    assert (other.scheme, other.host, other.port or 443) == (target.scheme, target.host, target.port)
    assert (target.scheme, target.port, target.trusted) == ("https", 443, False)
    assert not other.userinfo
