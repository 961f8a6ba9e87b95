"""The way out: what is reached, and all that is not, with real connections and resolvers in the test's hand."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import httpcore
import pytest

from services.adapters.webhook_poster import HttpPoster, SystemResolver
from services.webhooks.poster import Reply
from services.webhooks.urls import PUBLIC_ONLY, UrlRules
from tests.receiver import CERTIFICATES, TLS_HOST, Answer, Receiver, running_receiver

pytestmark = pytest.mark.anyio

PUBLIC_A, PUBLIC_B = "8.8.8.8", "1.1.1.1"
PUBLIC_URL = "https://hooks.example.com/lensd"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def tls_receiver() -> Iterator[Receiver]:
    with running_receiver(tls=True) as receiver:
        yield receiver


class Resolver:
    """Answers with one list of addresses after the other, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        del port
        self.asked.append(host)
        addresses = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if not addresses:
            raise socket.gaierror("no such host")
        return addresses


class NoNetwork(httpcore.AsyncNetworkBackend):
    """Notes where a connection was to be made, and makes none."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.asked.append((host, port))
        raise httpcore.ConnectError("no network")


def trusting(*hosts: str, **options: Any) -> HttpPoster:
    return HttpPoster(UrlRules(frozenset(hosts)), **options)


async def post(poster: HttpPoster, url: str) -> Reply:
    return await poster.post(url, {"webhook-id": "msg_a"}, b'{"type":"job.succeeded"}')


async def test_a_message_arrives_as_it_was_sent(receiver: Receiver) -> None:
    reply = await post(trusting("127.0.0.1"), receiver.url())
    assert (reply.status, reply.accepted) == (204, True)
    (received,) = receiver.received
    assert (received.path, received.body) == ("/hook?a=b", b'{"type":"job.succeeded"}')
    assert received.headers["webhook-id"] == "msg_a"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["user-agent"].startswith("lensd/")


@pytest.mark.parametrize(("status", "accepted"), [(200, True), (299, True), (304, False), (404, False), (500, False)])
async def test_2xx_alone_is_a_yes(receiver: Receiver, status: int, accepted: bool) -> None:
    receiver.answer = lambda _: Answer(status)
    reply = await post(trusting("127.0.0.1"), receiver.url())
    assert (reply.status, reply.accepted, reply.gone) == (status, accepted, False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: Answer(status, {"Location": receiver.url(path="/elsewhere")})
    reply = await post(trusting("127.0.0.1"), receiver.url())
    assert (reply.status, reply.failure) == (status, "status")
    assert [received.path for received in receiver.received] == ["/hook?a=b"]


async def test_no_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await post(trusting("127.0.0.1"), receiver.url())).accepted


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com/", "https://127.0.0.1/", "https://hooks.example.com:8443/", "https://localhost/"]
)
async def test_a_url_that_the_rules_no_longer_accept_is_not_even_looked_up(url: str) -> None:
    network, resolver = NoNetwork(), Resolver([PUBLIC_A])
    reply = await post(HttpPoster(PUBLIC_ONLY, resolver, network=network), url)
    assert (reply.status, reply.reason) == (None, "url_not_allowed")
    assert resolver.asked == []
    assert network.asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%eth0"],
        ["::ffff:127.0.0.1"],
        ["2002:7f00:1::1"],
        ["64:ff9b::a9fe:a9fe"],
        [PUBLIC_A, "127.0.0.1"],
        ["fd00::1", PUBLIC_A],
    ],
)
async def test_a_host_with_any_address_that_is_not_public_is_not_reached(addresses: list[str]) -> None:
    network = NoNetwork()
    reply = await post(HttpPoster(PUBLIC_ONLY, Resolver(addresses), network=network), PUBLIC_URL)
    assert (reply.status, reply.reason) == (None, "address_not_allowed")
    assert network.asked == []


async def test_the_machines_own_name_is_not_reached_by_way_of_the_machines_own_resolver(receiver: Receiver) -> None:
    assert "127.0.0.1" in await SystemResolver()("localhost", receiver.port)
    local_names = Resolver(await SystemResolver()("localhost", receiver.port))
    assert (await post(HttpPoster(PUBLIC_ONLY, local_names), PUBLIC_URL)).reason == "address_not_allowed"
    assert receiver.received == []


async def test_a_name_that_changes_its_mind_after_the_check_changes_nothing() -> None:
    network, rebinding = NoNetwork(), Resolver([PUBLIC_A], ["127.0.0.1"])
    poster = HttpPoster(PUBLIC_ONLY, rebinding, network=network)
    assert (await post(poster, PUBLIC_URL)).reason == "connection_failed"
    assert network.asked == [(PUBLIC_A, 443)]
    assert rebinding.asked == ["hooks.example.com"]
    assert (await post(poster, PUBLIC_URL)).reason == "address_not_allowed"
    assert network.asked == [(PUBLIC_A, 443)]


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    network = NoNetwork()
    await post(HttpPoster(PUBLIC_ONLY, Resolver([PUBLIC_A, PUBLIC_B]), network=network), PUBLIC_URL)
    assert network.asked == [(PUBLIC_A, 443), (PUBLIC_B, 443)]


async def test_the_hosts_are_looked_up_anew_for_each_message(receiver: Receiver) -> None:
    resolver = Resolver(["127.0.0.1"])
    poster = trusting("hooks.internal", resolve=resolver)
    for _ in range(3):
        assert (await post(poster, receiver.url("hooks.internal"))).accepted
    assert resolver.asked == ["hooks.internal"] * 3


async def test_not_even_a_trusted_host_leads_to_the_links_own_addresses() -> None:
    network = NoNetwork()
    poster = trusting("hooks.internal", resolve=Resolver(["169.254.169.254"]), network=network)
    assert (await post(poster, "http://hooks.internal/")).reason == "address_not_allowed"
    assert network.asked == []


async def test_a_host_that_is_not_known_is_told_apart() -> None:
    assert (await post(HttpPoster(PUBLIC_ONLY, Resolver([])), PUBLIC_URL)).reason == "host_not_found"


def authority() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATES / "authority.pem"))


async def test_the_certificate_is_checked_against_the_name_though_the_address_was_given(tls_receiver: Receiver) -> None:
    poster = trusting(TLS_HOST, "other.test", resolve=Resolver(["127.0.0.1"]), tls=authority())
    assert (await post(poster, tls_receiver.url(TLS_HOST, "https"))).accepted
    assert tls_receiver.received[0].headers["host"] == f"{TLS_HOST}:{tls_receiver.port}"
    assert (await post(poster, tls_receiver.url("other.test", "https"))).reason == "tls_failed"
    assert len(tls_receiver.received) == 1


async def test_an_authority_that_nobody_trusts_is_no_authority(tls_receiver: Receiver) -> None:
    poster = trusting(TLS_HOST, resolve=Resolver(["127.0.0.1"]))
    assert (await post(poster, tls_receiver.url(TLS_HOST, "https"))).reason == "tls_failed"
    assert tls_receiver.received == []


async def test_a_receiver_that_dribbles_its_answer_has_said_yes_and_is_hung_up_on(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(200, nbytes=1_000, pause_s=0.2)
    began = time.monotonic()
    assert (await post(trusting("127.0.0.1"), receiver.url())).accepted
    assert time.monotonic() - began < 60


async def test_a_receiver_that_says_nothing_is_given_up_after_the_time_for_a_whole_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert (await post(trusting("127.0.0.1", timeout_s=0.3), url)).reason == "timed_out"


async def test_a_name_server_that_says_nothing_is_given_up_as_well() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        del host, port
        await asyncio.Event().wait()
        return []

    assert (await post(HttpPoster(PUBLIC_ONLY, never, timeout_s=0.3), PUBLIC_URL)).reason == "timed_out"


async def test_an_answer_without_end_is_not_read_to_its_end(receiver: Receiver) -> None:
    receiver.answer = lambda _: Answer(200, nbytes=100_000_000)
    assert (await post(trusting("127.0.0.1"), receiver.url())).accepted


@contextmanager
def talker(words: bytes) -> Iterator[int]:
    """A server that says `words` to whoever connects; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65_536)
                connection.sendall(words)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(timeout=5)


@pytest.mark.parametrize(
    "words",
    [
        b"220 mail.example.com ESMTP\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"HTTP/1.1 2\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000_000,
    ],
)
async def test_what_is_not_http_is_no_answer(words: bytes) -> None:
    with talker(words) as port:
        reply = await post(trusting("127.0.0.1"), f"http://127.0.0.1:{port}/")
    assert reply.status is None
    assert reply.reason in {"not_http", "connection_failed"}


async def test_a_port_that_nobody_listens_on_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert (await post(trusting("127.0.0.1"), f"http://127.0.0.1:{port}/")).reason == "connection_failed"
