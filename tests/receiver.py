"""A receiver of webhooks on the loopback interface, over HTTP or HTTPS, that answers as it is told."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CERTIFICATES = Path(__file__).parent / "services/adapters/certificates"
TLS_HOST = "receiver.test"
"""What the receiver's certificate is made out to."""


@dataclass(frozen=True)
class Answer:
    """`pause_s` before every byte of a body of `nbytes`."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0
    pause_s: float = 0.0


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`answer` is asked once for each message, in the order of their coming."""

    port: int
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Answer] = lambda _: Answer()

    def url(self, host: str = "127.0.0.1", scheme: str = "http", path: str = "/hook?a=b") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@contextmanager
def running_receiver(*, tls: bool = False) -> Iterator[Receiver]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.daemon_threads = True
    receiver = Receiver(server.server_address[1])
    server.RequestHandlerClass = _handler(receiver)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATES / "receiver.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            receiver.received.append(got)
            answer = receiver.answer(got)
            try:
                self._send(answer)
            except OSError:
                self.close_connection = True

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(answer.nbytes))
            self.end_headers()
            for _ in range(answer.nbytes if answer.pause_s else 0):
                time.sleep(answer.pause_s)
                self.wfile.write(b"x")
            if not answer.pause_s:
                self.wfile.write(b"x" * answer.nbytes)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    return Handler
