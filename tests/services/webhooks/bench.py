"""A queue of messages to be tested, with the jobs that fill it and the clock in the test's hand."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from redis import Redis

from services.adapters.redis_deliveries import RedisDeliveries
from services.adapters.redis_jobs import RedisJobStore
from services.adapters.redis_webhooks import RedisWebhookStore
from services.jobs.memory import MemoryJobStore
from services.jobs.ports import JobStore
from services.jobs.record import Size, Succeeded, Ties
from services.webhooks.endpoint import Endpoint, new_endpoint_id, new_secret
from services.webhooks.memory import MemoryDeliveries, MemoryWebhookStore
from services.webhooks.store import Deliveries, Delivery, WebhookStore
from tests.services.adapters.valkey import pass_time
from tests.services.jobs.bench import POLICY, Clock
from tests.services.jobs.samples import DONE, new_job

LEASE_S = 30.0


@dataclass
class Bench:
    jobs: JobStore
    webhooks: WebhookStore
    deliveries: Deliveries
    advance: Callable[[float], None]

    def endpoint(self, owner: str = "ada") -> Endpoint:
        endpoint = new_endpoint(owner)
        self.webhooks.create(endpoint)
        return endpoint

    def submit(self, endpoint: Endpoint) -> str:
        job = new_job(endpoint.owner).model_copy(update={"ties": Ties(webhook=endpoint.id)})
        return self.jobs.create(job).id

    def cancelled(self, endpoint: Endpoint) -> str:
        """A job that ended, with a message about it."""
        job_id = self.submit(endpoint)
        self.jobs.cancel(job_id)
        return job_id

    def run_next(self, ending: Succeeded = DONE) -> None:
        claim = self.jobs.claim("default", "w1", tuple(Size))
        assert claim is not None
        assert self.jobs.finish(claim, ending)

    def claim(self, at_most: int = 100) -> list[Delivery]:
        return list(self.deliveries.claim(at_most, LEASE_S))


def new_endpoint(owner: str) -> Endpoint:
    return Endpoint(
        id=new_endpoint_id(),
        owner=owner,
        url="https://hooks.example.com/lensd",
        description="nightly",
        secret=new_secret(),
        created_at=datetime.now(UTC),
    )


def memory_bench() -> Bench:
    clock = Clock()
    jobs, webhooks = MemoryJobStore(POLICY, clock), MemoryWebhookStore()
    deliveries = MemoryDeliveries(webhooks, clock)
    jobs.on_end.append(deliveries.queue)
    return Bench(jobs, webhooks, deliveries, clock.advance)


def valkey_bench(client: Redis) -> Bench:
    return Bench(
        RedisJobStore(client, POLICY),
        RedisWebhookStore(client),
        RedisDeliveries(client),
        lambda seconds: pass_time(client, seconds),
    )
