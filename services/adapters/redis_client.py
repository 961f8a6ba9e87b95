"""Connections to Redis or Valkey: how patient they are, and what their errors mean.

TLS, its files, an ACL user and the number of the database come with the URL, as `services/store_settings.py` makes it.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from services.contracts.errors import ErrorCode, Unavailable

_log = logging.getLogger(__name__)

ASYNC_CONNECTIONS = 16
TURN_S = 20
"""How long a caller waits for its turn on one of them: long enough for a thousand on a busy machine."""
OLDEST_VERSION = 7
PATIENCE_S = 60.0
LONGEST_PAUSE_S = 1.0


class UnsuitableServerError(Exception):
    """The server answers, but lensd cannot keep its promises on it; the message says why and what to use."""


class PatientRedis(Redis):
    """Repeats a command for up to a minute while the server does not answer.

    redis-py's own retries nest (reconnecting within repeating), so that their total cannot be told beforehand.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        give_up_at = time.monotonic() + PATIENCE_S
        pause = 0.05
        while True:
            try:
                return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's gap
            except (AuthenticationError, AuthorizationError):
                raise
            except (RedisConnectionError, RedisTimeoutError):
                if time.monotonic() + pause > give_up_at:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)


def make_client(url: str, *, patient: bool) -> Redis:
    """A client that connects when first used.

    `patient`, for workers: rides out an outage of a minute, so that no finished work is lost in it.
    Otherwise, for gateways: says within about two seconds that the server does not answer.
    """
    # One more try: a server that came back has closed the connections that wait in the pool.
    retry = Retry(ConstantBackoff(0.01), retries=1)
    if patient:
        return PatientRedis.from_url(url, retry=retry, socket_connect_timeout=2, socket_timeout=10)
    return Redis.from_url(url, retry=retry, socket_connect_timeout=0.5, socket_timeout=1)


def make_async_client(url: str) -> AsyncRedis:
    """A client for one event loop whose callers take turns on a few connections."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=ASYNC_CONNECTIONS,
        timeout=TURN_S,
        retry=AsyncRetry(ConstantBackoff(0.01), retries=1),
        socket_connect_timeout=0.5,
        socket_timeout=5,
    )
    return AsyncRedis.from_pool(pool)


def check_server(client: Redis, *, ephemeral: bool = False) -> None:
    """To be called once at start.

    Raises UnsuitableServerError for Redis Cluster, for a server too old, free to evict job records, or (but for an
    `ephemeral` store, whose jobs may be lost with it) without an append-only file; Unavailable(STORE_UNAVAILABLE) when
    there is no answer.
    """
    with store_errors():
        info = client.info()
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == 1:
        raise UnsuitableServerError(
            "the server is a Redis Cluster, which Celery's transport does not support: use one primary "
            "(with replicas, if you like)"
        )
    version = str(info.get("redis_version", ""))
    if int(version.partition(".")[0] or 0) < OLDEST_VERSION:
        raise UnsuitableServerError(f"the server is Redis {version}: lensd needs Redis {OLDEST_VERSION} or Valkey")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise UnsuitableServerError(
            f"the server's maxmemory-policy is {policy}, so it may forget what lensd has promised to keep: set it to "
            "noeviction"
        )
    if info.get("aof_enabled") == 0 and not ephemeral:
        raise UnsuitableServerError(
            "the server keeps no append-only file, so accepted jobs would be lost with its process: set appendonly to "
            "yes, or LENSD_STORE_EPHEMERAL=true where they may be"
        )


@contextmanager
def store_errors() -> Iterator[None]:
    """Whatever the server or the way to it does to a command becomes Unavailable(STORE_UNAVAILABLE)."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer: try again") from error
    except OutOfMemoryError as error:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store's memory is full: try again later", 10) from error
    except RedisError as error:
        _log.error("the store refused a command: %s", error)
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store refused a command: try again") from error
