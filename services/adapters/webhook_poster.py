"""The way out over HTTP/1.1, to checked addresses only.

1. read the URL anew: the operator's rules may have changed since it was registered;
2. look up its host, once; every address must be one that may be reached, or none is;
3. connect to one of these very addresses: a name that changes its mind meanwhile changes nothing. The certificate is
   checked against the host's name all the same;
4. post; follow nothing, go through no proxy, read little of the answer, and take `TIMEOUT_S` for all of it. The status
   decides: what comes after it is read out of courtesy.

httpcore is used as it is: unlike a full client it knows neither redirects nor proxies, cookies nor the environment.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from typing import Any

import anyio
import httpcore

from services.contracts.errors import InvalidSpec
from services.webhooks.poster import TIMEOUT_S, Reply
from services.webhooks.urls import Target, UrlRules

MAX_ANSWER_BYTES = 32_768
"""Read from a receiver, interim answers and headers included. Its status is all that is kept."""

_CONNECT_TIMEOUT_S = 5.0
_READING_ON_S = 1.0
"""How long a receiver may go on sending after its status, before the connection is closed on it."""

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
        self._user_agent = f"lensd/{version('lensd')}"

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
        sent = {"user-agent": self._user_agent, "content-length": str(len(body)), **headers}
        # A pool of its own: a connection that is kept would escape the next message's check.
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=network) as pool,
            pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
        ):
            await _read_on(response)
            return Reply(status=response.status)

    async def _addresses(self, target: Target) -> Sequence[str]:
        try:
            return (str(ip_address(target.host)),)
        except ValueError:
            return await self._resolve(target.host, target.port)


class SystemResolver:
    """The machine's own, in threads that a slow name server may hold: they end by themselves, and hold up nothing."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()

        def tell(answer: Sequence[str] | Exception) -> None:
            if found.done():
                return
            if isinstance(answer, Exception):
                found.set_exception(answer)
            else:
                found.set_result(answer)

        def look_up() -> None:
            answer: Sequence[str] | Exception
            try:
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answer = list(dict.fromkeys(str(address[0]) for *_, address in entries))
            except (OSError, UnicodeError) as error:
                answer = error
            # The loop is closed when the process ends meanwhile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, answer)

        threading.Thread(target=look_up, name="look-up", daemon=True).start()
        return await found


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
        connect = partial(
            self._network.connect_tcp,
            port=port,
            timeout=_CONNECT_TIMEOUT_S,
            local_address=local_address,
            socket_options=socket_options,
        )
        *others, last = self._addresses
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return _Bounded(await connect(address))
        return _Bounded(await connect(last))


class _Bounded(httpcore.AsyncNetworkStream):
    """Breaks off a receiver that sends more than `MAX_ANSWER_BYTES`: interim answers, say, without end."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = MAX_ANSWER_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._left:
            raise httpcore.ReadError("the answer is too long")
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Bounded(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


async def _read_on(response: httpcore.Response) -> None:
    """So that a receiver can finish its answer in peace, if it is a short one."""
    with anyio.move_on_after(_READING_ON_S), suppress(httpcore.NetworkError, httpcore.ProtocolError):
        async for _ in response.aiter_stream():
            pass
