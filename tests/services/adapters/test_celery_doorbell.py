"""The doorbell as Celery messages."""

import base64
import socket
import time
from pathlib import Path

import orjson
from redis import Redis

from services.adapters.celery_doorbell import CeleryDoorbell
from services.adapters.embedded_valkey import free_port
from tests.services.adapters.valkey import valkey_server


def test_a_ring_is_a_json_message_that_names_the_pool_alone(redis_url: str) -> None:
    CeleryDoorbell(redis_url).ring("default")
    with Redis.from_url(redis_url) as client:
        message = orjson.loads(str(client.lindex("lensd.default", 0), "utf-8"))
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == "lensd.ring"
    args, kwargs, _ = orjson.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([], {"pool": "default"})


def test_rings_wait_in_their_own_pool(redis_url: str) -> None:
    doorbell = CeleryDoorbell(redis_url)
    assert doorbell.waiting("a") == 0
    doorbell.ring("a")
    doorbell.ring("a")
    assert (doorbell.waiting("a"), doorbell.waiting("b")) == (2, 0)


def test_a_broker_that_is_down_costs_little_time_and_no_error() -> None:
    doorbell = CeleryDoorbell(f"redis://127.0.0.1:{free_port()}/0")
    began = time.monotonic()
    doorbell.ring("default")
    assert doorbell.waiting("default") is None
    assert time.monotonic() - began < 2


def test_a_broker_that_hangs_costs_little_time_and_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        doorbell = CeleryDoorbell(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        began = time.monotonic()
        doorbell.ring("default")
        assert time.monotonic() - began < 2


def test_a_broker_that_comes_back_is_rung_again(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        doorbell = CeleryDoorbell(server.url)
        doorbell.ring("default")
        server.stop()
        doorbell.ring("default")
        server.start()
        doorbell.ring("default")
        assert doorbell.waiting("default") == 2
