"""Listening at the door: the short way to an idle worker."""

import threading
from collections.abc import Iterator

import pytest
from redis import Redis

from services.adapters.embedded_valkey import free_port
from services.adapters.redis_client import make_client
from services.adapters.redis_doorbell import ENOUGH_WAITING, RedisDoorbell, RedisDoorstep
from services.contracts.errors import Unavailable
from services.jobs.memory import MemoryDoorbell

A_MOMENT = 0.01
LONG = 10.0


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with make_client(redis_url, patient=False) as client:
        yield client


@pytest.fixture
def behind() -> MemoryDoorbell:
    return MemoryDoorbell()


@pytest.fixture
def doorbell(client: Redis, behind: MemoryDoorbell) -> RedisDoorbell:
    return RedisDoorbell(client, behind)


@pytest.fixture
def doorstep(client: Redis) -> RedisDoorstep:
    return RedisDoorstep(client)


def test_a_worker_that_listens_hears_the_ring(redis_url: str, doorbell: RedisDoorbell, behind: MemoryDoorbell) -> None:
    patient = make_client(redis_url, patient=True)
    heard: list[bool] = []
    listener = threading.Thread(target=lambda: heard.append(RedisDoorstep(patient).listen("a", "w1", LONG)))
    listener.start()
    while not patient.exists("lensd:listening:a"):
        pass
    doorbell.ring("a")
    listener.join(5)
    assert heard == [True]
    assert behind.waiting("a") == 0


def test_where_nobody_listens_it_rings_behind(doorbell: RedisDoorbell, behind: MemoryDoorbell) -> None:
    doorbell.ring("a")
    assert behind.waiting("a") == doorbell.waiting("a") == 1


def test_messages_that_nobody_hears_are_bounded(client: Redis, doorbell: RedisDoorbell, behind: MemoryDoorbell) -> None:
    client.lpush("lensd.a", *["x"] * (ENOUGH_WAITING - 1))
    doorbell.ring("a")
    assert behind.waiting("a") == 1
    client.lpush("lensd.a", "x")
    doorbell.ring("a")
    assert behind.waiting("a") == 1


def test_a_worker_of_another_pool_hears_nothing(
    doorbell: RedisDoorbell, doorstep: RedisDoorstep, behind: MemoryDoorbell
) -> None:
    assert not doorstep.listen("b", "w1", A_MOMENT)
    doorbell.ring("a")
    assert behind.waiting("a") == 1


def test_each_ring_goes_to_one_worker_and_the_next_one_behind(
    doorbell: RedisDoorbell, doorstep: RedisDoorstep, behind: MemoryDoorbell
) -> None:
    assert not doorstep.listen("a", "w1", 0.7)
    assert not doorstep.listen("a", "w2", 0.3)
    for _ in range(3):
        doorbell.ring("a")
    assert doorstep.listen("a", "w1", A_MOMENT)
    assert doorstep.listen("a", "w2", A_MOMENT)
    assert behind.waiting("a") == 1


def test_a_ring_between_two_looks_is_heard_by_the_second(doorbell: RedisDoorbell, doorstep: RedisDoorstep) -> None:
    assert not doorstep.listen("a", "w1", 0.5)
    doorbell.ring("a")
    assert doorstep.listen("a", "w1", A_MOMENT)
    assert not doorstep.listen("a", "w1", A_MOMENT)


def test_a_worker_that_listens_no_more_is_not_rung_for_long(
    client: Redis, doorbell: RedisDoorbell, doorstep: RedisDoorstep, behind: MemoryDoorbell
) -> None:
    assert not doorstep.listen("a", "w1", A_MOMENT)
    threading.Event().wait(3 * A_MOMENT)
    doorbell.ring("a")
    assert behind.waiting("a") == 1
    assert not client.exists("lensd:bell:w1")


def test_one_that_leaves_is_told_of_a_ring_it_has_not_heard(
    client: Redis, doorbell: RedisDoorbell, doorstep: RedisDoorstep
) -> None:
    assert not doorstep.listen("a", "w1", 0.5)
    assert not doorstep.leave("a", "w1")
    assert not doorstep.listen("a", "w1", 0.5)
    doorbell.ring("a")
    assert doorstep.leave("a", "w1")
    assert client.keys("lensd:listening:*") == client.keys("lensd:bell:*") == []


def test_a_store_that_is_down_leaves_the_long_way(behind: MemoryDoorbell) -> None:
    with make_client(f"redis://127.0.0.1:{free_port()}/0", patient=False) as client:
        RedisDoorbell(client, behind).ring("a")
        assert behind.waiting("a") == 1
        with pytest.raises(Unavailable):
            RedisDoorstep(client).listen("a", "w1", A_MOMENT)
