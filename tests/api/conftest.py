"""The gateway on the fakes of its ports and a tiny catalogue, reached through httpx without a network."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.dependencies import GatewayServices
from api.limits import RequestLimits
from services.batches.memory import MemoryBatchStore
from services.catalogue.catalogue import Catalogue, open_catalogue
from services.catalogue.feature_indexes import FeatureIndexes, FeatureReader
from services.catalogue.resolve import Limits
from services.contracts.job import JobError, JobProgress
from services.jobs.cache import PoolRunner
from services.jobs.memory import (
    MemoryBlobs,
    MemoryDoorbell,
    MemoryEvents,
    MemoryJobStore,
    MemoryResultCache,
    MemoryWorkers,
)
from services.jobs.policy import JobPolicy
from services.jobs.record import Claim, Failed, Size, StoredResult, Succeeded
from services.labels.memory import MemoryLabelStore
from services.tenants.keys import Scope, new_key
from services.tenants.memory import MemoryAuditLog, MemoryKeyStore
from services.webhooks.memory import MemoryDeliveries, MemoryWebhookStore
from tests.api.catalogue import write_catalogue

POOL = "default"
WORKER = "worker-1"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    home: Path = tmp_path_factory.mktemp("home")
    write_catalogue(home)
    return open_catalogue(home)


@dataclass
class Stand:
    """The gateway under test and what stands behind it."""

    app: FastAPI
    services: GatewayServices
    store: MemoryJobStore
    doorbell: MemoryDoorbell
    blobs: MemoryBlobs
    workers: MemoryWorkers
    keys: MemoryKeyStore
    deliveries: MemoryDeliveries

    def key(self, owner: str, *scopes: Scope) -> str:
        """A fresh key of `owner`, with all scopes unless some are named."""
        plaintext, record = new_key(owner, "test", scopes or tuple(Scope))
        self.keys.put(record)
        return plaintext

    def client(self, key: str | None, app: FastAPI | None = None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app or self.app), base_url="http://lensd", headers=headers
        )

    def claim(self) -> Claim:
        """Take the next job, as a worker would."""
        claim = self.store.claim(POOL, WORKER, tuple(Size))
        assert claim is not None
        return claim

    def advance(self, claim: Claim, done: int) -> None:
        self.store.progress(claim, JobProgress(done=done, planned=10))

    def succeed(self, claim: Claim, result: StoredResult) -> None:
        assert self.store.finish(claim, Succeeded(result))

    def fail(self, claim: Claim, error: JobError) -> None:
        assert self.store.finish(claim, Failed(error))

    def app_with(self, **ports: Any) -> FastAPI:
        """The same gateway with some of its ports exchanged."""
        return create_app(replace(self.services, **ports), RequestLimits())


def unopened(path: Path) -> FeatureReader:
    raise AssertionError(f"{path} is no index")


@pytest.fixture
def stand(tiny_catalogue: Catalogue) -> Stand:
    store, keys, blobs = MemoryJobStore(JobPolicy()), MemoryKeyStore(), MemoryBlobs()
    doorbell, workers = MemoryDoorbell(), MemoryWorkers()
    webhooks = MemoryWebhookStore()
    deliveries = MemoryDeliveries(webhooks)
    store.on_end.append(deliveries.queue)
    batches = MemoryBatchStore(store, JobPolicy())
    batches.on_end.append(lambda batch: deliveries.queue_about(batch.id, batch.owner, batch.webhook))
    services = GatewayServices(
        store=store,
        results=MemoryResultCache(store, JobPolicy()),
        events=MemoryEvents(store),
        doorbell=doorbell,
        blobs=blobs,
        workers=workers,
        keys=keys,
        labels=MemoryLabelStore(),
        batches=batches,
        audit=MemoryAuditLog(),
        webhooks=webhooks,
        catalogue=tiny_catalogue,
        features=FeatureIndexes(tiny_catalogue, unopened),
        limits=Limits(tokens=10_000),
        pool=POOL,
        runner=PoolRunner(workers, POOL, kept_s=0),
    )
    return Stand(create_app(services, RequestLimits()), services, store, doorbell, blobs, workers, keys, deliveries)


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of all scopes."""
    async with stand.client(stand.key("alice")) as client:
        yield client
