"""Messages that lensd did not write, in the queue of doorbells."""

import base64
import json
from collections.abc import Iterator

import pytest
from kombu import Connection, Consumer, Queue
from redis import Redis

from services.adapters.celery_doorbell import CeleryDoorbell
from services.adapters.celery_transport import EnduringTransport, MalformedRing, use_enduring_transport

QUEUE = "lensd.default"
WELL_FORMED = {
    "body": base64.b64encode(b"[[], {}, {}]").decode(),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"task": "lensd.ring", "id": "1"},
    "properties": {
        "delivery_tag": "1",
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "body_encoding": "base64",
    },
}
MALFORMED = [
    b"not json",
    b"\xff\xfe",
    b"[" * 50_000,
    b"{}",
    b"[1, 2]",
    b"5",
    b"null",
    b'{"properties": 5}',
    json.dumps(WELL_FORMED | {"properties": {"delivery_tag": "1", "delivery_info": {}}}).encode(),
    json.dumps(WELL_FORMED | {"headers": 5}).encode(),
    json.dumps(WELL_FORMED | {"properties": {"delivery_tag": ["1"], "delivery_info": {}}}).encode(),
]


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    use_enduring_transport()
    with Connection(redis_url) as connection:
        assert isinstance(connection.transport, EnduringTransport)
        yield connection


def drain(connection: Connection) -> None:
    while True:
        try:
            connection.drain_events(timeout=0.5)
        except TimeoutError:
            return


@pytest.mark.parametrize("malformed", MALFORMED, ids=lambda message: str(message[:30]))
def test_a_malformed_message_is_dropped_with_a_line_and_the_next_ring_is_heard(
    redis_url: str, connection: Connection, caplog: pytest.LogCaptureFixture, malformed: bytes
) -> None:
    heard: list[object] = []
    with Redis.from_url(redis_url) as client:
        client.lpush(QUEUE, malformed)
        CeleryDoorbell(redis_url).ring("default")
        with Consumer(connection, [Queue(QUEUE)], callbacks=[lambda _, message: heard.append(message)], no_ack=True):
            drain(connection)
        assert client.llen(QUEUE) == 0
    assert len(heard) == 1
    assert [record.levelname for record in caplog.records if "quarantined" in record.message] == ["ERROR"]


def test_a_message_that_its_reader_chokes_on_is_dropped_and_does_not_come_again(
    redis_url: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(message: object) -> None:
        raise MalformedRing(str(message))

    with Redis.from_url(redis_url) as client:
        client.lpush(QUEUE, json.dumps(WELL_FORMED))
        with Consumer(connection, [Queue(QUEUE)], on_message=choke):
            drain(connection)
            assert client.hlen("unacked") == 0
    assert "quarantined a malformed doorbell: MalformedRing" in caplog.text
