"""TLS in front of a server that has none: the Valkey that comes with the tests is built without it."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from services.adapters.parent_death import dies_with_parent

PROJECT = Path(__file__).parents[1]
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificate:
    cert: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority and what it has signed: a server on the loopback, and a client."""

    ca: Path
    server: Certificate
    client: Certificate


def make_authority(folder: Path) -> Authority:
    """Fresh keys and certificates in `folder`, good for a day, by the `openssl` command."""
    folder.mkdir(parents=True, exist_ok=True)
    ca = Certificate(folder / "ca.pem", folder / "ca.key")
    _openssl("req", "-x509", *_NEW_KEY, "-keyout", ca.key, "-out", ca.cert, "-subj", "/CN=lensd tests", "-days", "1")
    return Authority(ca.cert, _signed(folder, ca, "server"), _signed(folder, ca, "client"))


def _signed(folder: Path, ca: Certificate, name: str) -> Certificate:
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl("req", *_NEW_KEY, "-keyout", made.key, "-out", request, "-subj", f"/CN={name}")
    signing = ("-CA", ca.cert, "-CAkey", ca.key, "-CAcreateserial", "-days", "1", "-extfile", extensions)
    _openssl("x509", "-req", "-in", request, *signing, "-out", made.cert)
    return made


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@contextmanager
def tls_in_front_of(port: int, authority: Authority) -> Iterator[int]:
    """The port at which TLS connections with a client's certificate are passed on to `port`, on the loopback.

    A process of its own: what clients leave open ends with it.
    """
    files = (authority.ca, authority.server.cert, authority.server.key)
    command = [sys.executable, "-m", "tests.tls", str(port), *map(str, files)]
    with subprocess.Popen(dies_with_parent(command), cwd=PROJECT, stdout=subprocess.PIPE, text=True) as passing_on:
        assert passing_on.stdout is not None
        try:
            yield int(passing_on.stdout.readline())
        finally:
            passing_on.kill()


async def _main(port: int, ca: str, cert: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    context.load_cert_chain(cert, key)
    context.verify_mode = ssl.CERT_REQUIRED
    # What fails between two TLS parties is told by the tests.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    server = await asyncio.start_server(partial(_serve, port), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _serve(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there, back = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
    finally:
        target.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), *sys.argv[2:]))
