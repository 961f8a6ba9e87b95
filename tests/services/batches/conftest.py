from collections.abc import Iterator

import pytest

from services.adapters.redis_client import make_client
from tests.services.adapters.valkey import redis_url, shared_server
from tests.services.batches.bench import BatchBench, memory_batches, valkey_batches

__all__ = ["redis_url", "shared_server"]


@pytest.fixture(params=["memory", "valkey"])
def bench(request: pytest.FixtureRequest) -> Iterator[BatchBench]:
    """The fakes and the real stores: every test that takes it runs on both."""
    if request.param == "memory":
        yield memory_batches()
        return
    with make_client(request.getfixturevalue("redis_url"), patient=False) as client:
        yield valkey_batches(client)
