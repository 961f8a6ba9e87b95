"""The way out over HTTP/1.1, to checked addresses only.

1. read the URL anew: the operator's rules may have changed since it was registered;
2. look up its host, once; every address must be one that may be reached, or none is;
3. connect to one of these very addresses: a name that changes its mind meanwhile changes nothing. The certificate is
   checked against the host's name all the same;
4. post; follow nothing, go through no proxy, read little of the answer, and take `TIMEOUT_S` for all of it.

httpcore is used as it is: unlike a full client it knows neither redirects nor proxies, cookies nor the environment.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any

import anyio
import anyio.to_thread
import httpcore

from services.contracts.errors import InvalidSpec
from services.webhooks.poster import TIMEOUT_S, Reply
from services.webhooks.urls import Target, UrlRules

MAX_ANSWER_BYTES = 65_536
"""Read of an answer, so that a receiver can send one in peace; none of it is kept."""

_CONCURRENT_LOOKUPS = 16
_CONNECT_TIMEOUT_S = 5.0

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and a port to all its addresses; raises OSError when there are none."""


class HttpPoster:
    """Implements `services.webhooks.poster.Poster`, on one event loop."""

    def __init__(
        self,
        rules: UrlRules,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._rules = rules
        self._resolve = resolve or SystemResolver()
        self._tls = tls or httpcore.default_ssl_context()
        self._network = network or httpcore.AnyIOBackend()
        self._timeout_s = timeout_s

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        try:
            target = self._rules.read(url)
        except InvalidSpec:
            return Reply(reason="url_not_allowed")
        try:
            with anyio.fail_after(self._timeout_s):
                return await self._post(target, headers, body)
        except (TimeoutError, httpcore.TimeoutException):
            return Reply(reason="timed_out")
        except httpcore.ConnectError as error:
            # The pool raises it anew without its cause.
            return Reply(reason="tls_failed" if isinstance(error.__context__, ssl.SSLError) else "connection_failed")
        except httpcore.NetworkError:
            return Reply(reason="connection_failed")
        except httpcore.ProtocolError:
            return Reply(reason="not_http")

    async def _post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Reply:
        try:
            addresses = await self._addresses(target)
        except (OSError, UnicodeError):
            return Reply(reason="host_not_found")
        if not addresses or not all(map(target.admits, addresses)):
            return Reply(reason="address_not_allowed")
        network = _Checked(addresses, self._network)
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        sent = {"user-agent": f"lensd/{version('lensd')}", "content-length": str(len(body)), **headers}
        # A pool of its own: a connection that is kept would escape the next message's check.
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=network) as pool,
            pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
        ):
            await _read_some(response)
            return Reply(status=response.status)

    async def _addresses(self, target: Target) -> Sequence[str]:
        try:
            return (str(ip_address(target.host)),)
        except ValueError:
            return await self._resolve(target.host, target.port)


class SystemResolver:
    """The machine's own, in threads, which are left behind when a name server takes longer than a try may."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self._limiter = self._limiter or anyio.CapacityLimiter(_CONCURRENT_LOOKUPS)
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await anyio.to_thread.run_sync(look_up, limiter=self._limiter, abandon_on_cancel=True)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to the first of the checked addresses that answers, whatever the name says by now."""

    def __init__(self, addresses: Sequence[str], network: httpcore.AsyncNetworkBackend) -> None:
        self._addresses = addresses
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del host, timeout
        *others, last = self._addresses
        for address in others:
            try:
                return await self._network.connect_tcp(address, port, _CONNECT_TIMEOUT_S, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(last, port, _CONNECT_TIMEOUT_S, local_address, socket_options)


async def _read_some(response: httpcore.Response) -> None:
    read = 0
    async for chunk in response.aiter_stream():
        read += len(chunk)
        if read > MAX_ANSWER_BYTES:
            return
