"""The end of a batch is told to the endpoint that it names: the fakes and the real stores."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from services.adapters.redis_client import make_client
from services.adapters.redis_deliveries import RedisDeliveries
from services.adapters.redis_webhooks import RedisWebhookStore
from services.batches.memory import MemoryBatchStore
from services.batches.record import Checked
from services.contracts.errors import ErrorCode
from services.contracts.job import JobError
from services.jobs.ids import new_blob_key
from services.webhooks.memory import MemoryDeliveries, MemoryWebhookStore
from services.webhooks.store import Deliveries, WebhookStore
from tests.services.batches.bench import MANY, BatchBench, memory_batches, new_batch, stored_lines, valkey_batches
from tests.services.webhooks.bench import new_endpoint

WRONG = JobError(code=ErrorCode.INVALID_LINES, message="1 of 3 lines are wrong")


@dataclass
class Telling:
    bench: BatchBench
    webhooks: WebhookStore
    deliveries: Deliveries

    def endpoint(self) -> str:
        endpoint = new_endpoint("ada")
        self.webhooks.create(endpoint)
        return endpoint.id

    def upload(self, webhook: str | None) -> str:
        batch = new_batch().model_copy(update={"webhook": webhook})
        self.bench.batches.create(batch, MANY)
        self.bench.batches.open(batch.id, new_blob_key(batch.id, 0))
        return batch.id

    def told(self) -> list[tuple[str, str, str]]:
        return [(each.id, each.endpoint_id, each.subject) for each in self.deliveries.claim(10, 30)]


@pytest.fixture(params=["memory", "valkey"])
def telling(request: pytest.FixtureRequest) -> Iterator[Telling]:
    if request.param == "memory":
        bench, webhooks = memory_batches(), MemoryWebhookStore()
        deliveries = MemoryDeliveries(webhooks)
        assert isinstance(bench.batches, MemoryBatchStore)
        bench.batches.on_end.append(lambda batch: deliveries.queue_about(batch.id, batch.owner, batch.webhook))
        yield Telling(bench, webhooks, deliveries)
        return
    with make_client(request.getfixturevalue("redis_url"), patient=False) as client:
        yield Telling(valkey_batches(client), RedisWebhookStore(client), RedisDeliveries(client))


def test_a_batch_that_ends_is_told_once_to_its_endpoint(telling: Telling) -> None:
    endpoint, batches = telling.endpoint(), telling.bench.batches
    batch_id = telling.upload(endpoint)
    assert telling.bench.batch(batch_id).webhook == endpoint
    turn = telling.bench.turn()
    batches.check(turn, Checked(stored_lines(3), offset=30, number=3, cost=180))
    batches.start(turn, None)
    assert telling.told() == []
    batches.cancel(batch_id)
    batches.cancel(batch_id)
    assert telling.told() == [("msg_" + batch_id, endpoint, batch_id)]
    assert telling.deliveries.waiting("ada") == 1


def test_a_batch_that_fails_is_told_too(telling: Telling) -> None:
    endpoint = telling.endpoint()
    batch_id = telling.upload(endpoint)
    turn = telling.bench.turn()
    telling.bench.batches.fail(turn, WRONG)
    telling.bench.batches.fail(turn, WRONG)
    assert telling.told() == [("msg_" + batch_id, endpoint, batch_id)]


def test_a_batch_without_an_endpoint_or_with_a_deleted_one_is_not_told(telling: Telling) -> None:
    deleted = telling.endpoint()
    for batch_id in (telling.upload(None), telling.upload(deleted)):
        telling.webhooks.delete(deleted)
        telling.bench.batches.cancel(batch_id)
        assert telling.bench.batch(batch_id).finished_at is not None
    assert telling.told() == []
