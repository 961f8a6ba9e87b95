"""What an answer, a refusal or silence of the server becomes."""

import inspect
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis.exceptions
from redis import Redis

from services.adapters.embedded_valkey import free_port, server_binary
from services.adapters.redis_client import UnsuitableServerError, check_server, make_client, store_errors
from services.contracts.errors import ErrorCode, Unavailable
from tests.services.adapters.valkey import valkey_server

SERVER_ERRORS = [
    error
    for _, error in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(error, redis.exceptions.RedisError)
]


@pytest.mark.parametrize("error", SERVER_ERRORS)
def test_every_error_of_the_server_means_unavailable(error: type[Exception]) -> None:
    with pytest.raises(Unavailable) as refusal, store_errors():
        raise error("12182 because:7001")
    assert refusal.value.code is ErrorCode.STORE_UNAVAILABLE
    assert "because" not in refusal.value.message


def test_a_gateways_client_says_at_once_that_nobody_listens() -> None:
    client = make_client(f"redis://127.0.0.1:{free_port()}/0", patient=False)
    began = time.monotonic()
    with pytest.raises(Unavailable), store_errors():
        client.ping()
    assert time.monotonic() - began < 1


def test_a_gateways_client_does_not_wait_long_for_a_server_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = make_client(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", patient=False)
        began = time.monotonic()
        with pytest.raises(Unavailable), store_errors():
            client.ping()
        assert time.monotonic() - began < 5


def test_a_workers_client_rides_out_an_outage(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server, make_client(server.url, patient=True) as client:
        client.set("a", "1")
        server.stop()
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(client.get, "a")
            time.sleep(0.5)
            assert not answer.done()
            server.start()
            assert answer.result(timeout=5) == b"1"


def test_a_gateways_client_works_again_with_its_first_command_after_a_restart(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server, make_client(server.url, patient=False) as client:
        client.set("a", "1")
        server.stop()
        server.start()
        assert client.get("a") == b"1"


def test_a_wrong_password_is_not_waited_for(redis_url: str) -> None:
    client = make_client(f"redis://:wrong@{redis_url.rpartition('@')[2]}", patient=True)
    began = time.monotonic()
    with pytest.raises(Unavailable), store_errors():
        client.ping()
    assert time.monotonic() - began < 1


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A server in cluster mode."""
    port = free_port()
    command = [
        str(server_binary()),
        "--port",
        str(port),
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        str(free_port()),
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        client = make_client(f"redis://127.0.0.1:{port}/0", patient=True)
        client.ping()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def test_a_cluster_is_refused_with_a_sentence(cluster: str) -> None:
    with pytest.raises(UnsuitableServerError, match=r"Redis Cluster.*use one primary"):
        check_server(make_client(cluster, patient=False))


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"])
def test_a_server_that_may_evict_what_is_kept_is_refused(redis_url: str, policy: str) -> None:
    with Redis.from_url(redis_url) as client:
        check_server(client)
        client.config_set("maxmemory-policy", policy)
        try:
            with pytest.raises(UnsuitableServerError, match=f"{policy}.*noeviction"):
                check_server(client, ephemeral=True)
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_a_server_without_an_append_only_file_is_refused_unless_its_jobs_may_be_lost(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server, make_client(server.url, patient=False) as client:
        check_server(client)
        client.config_set("appendonly", "no")
        with pytest.raises(UnsuitableServerError, match="appendonly"):
            check_server(client)
        check_server(client, ephemeral=True)
