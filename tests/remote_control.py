"""Celery's remote control, as whoever reaches the broker can send it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from celery import Celery

from tests.processes import eventually

WITNESS = "witness"
ANSWER_S = 3.0
"""What a worker may take to answer a ping; one that takes remote control needs milliseconds."""


@dataclass
class Heard:
    """What a node that takes remote control hears, and who answers when all are asked."""

    commands: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)


def ping_and_shut_down(broker_url: str) -> Heard:
    """Ask every node whether it lives, then tell all to end. A witness listens too: so the messages do arrive."""
    app = Celery("control", broker=broker_url, set_as_current=False)
    heard = Heard()
    with app, _witness(app, heard):
        if not eventually(lambda: app.control.ping(destination=[WITNESS], timeout=0.5, limit=1)):
            raise AssertionError("nobody can be reached through this broker")
        heard.answered += [name for reply in app.control.ping(timeout=ANSWER_S) or () for name in reply]
        app.control.shutdown()
        eventually(lambda: "shutdown" in heard.commands)
    return heard


@contextmanager
def _witness(app: Celery, heard: Heard) -> Iterator[None]:
    ended = threading.Event()

    def note(command: str) -> dict[str, str]:
        heard.commands.append(command)
        return {"ok": "pong"}

    def listen() -> None:
        handlers = {"ping": lambda _: note("ping"), "shutdown": lambda _: note("shutdown")}
        with app.connection() as connection, connection.channel() as channel:
            mailbox = app.control.mailbox  # type: ignore[attr-defined]  # unknown to the stubs
            node = mailbox.Node(WITNESS, channel=channel, handlers=handlers)
            with node.listen(channel=channel):
                while not ended.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=listen, name=WITNESS, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
