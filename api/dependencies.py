"""What the routes stand on: the ports, handed in by whoever builds the application, and how a route reaches them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Request

from api.events import KEEP_ALIVE_S
from api.strangers import Strangers
from services.batches.store import BatchStore
from services.catalogue.catalogue import Catalogue
from services.catalogue.feature_indexes import FeatureIndexes
from services.catalogue.resolve import Limits
from services.jobs.cache import PoolRunner, ResultCache
from services.jobs.ports import Blobs, Doorbell, JobEvents, JobStore, WorkerRegistry
from services.labels.store import LabelStore
from services.tenants.administration import KeyAdministration
from services.tenants.audit import AuditLog
from services.tenants.keys import ApiKey, KeyStore
from services.tenants.limits import DEFAULTS, TenantLimits
from services.tenants.refusals import Refusals
from services.webhooks.store import WebhookStore
from services.webhooks.urls import PUBLIC_ONLY, UrlRules

_CONCURRENT_READS = 2
"""Bodies parsed and tokenised at once: both are pure computation, so more would only crowd out the small requests."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class GatewayServices:
    """Everything the gateway needs from outside itself."""

    store: JobStore
    results: ResultCache
    events: JobEvents
    doorbell: Doorbell
    blobs: Blobs
    workers: WorkerRegistry
    keys: KeyStore
    labels: LabelStore
    batches: BatchStore
    audit: AuditLog
    webhooks: WebhookStore
    catalogue: Catalogue
    """Everything that is served; routes use `catalogue_for` the caller's key."""
    features: FeatureIndexes
    limits: Limits
    pool: str
    """The worker pool that jobs go to."""
    runner: PoolRunner
    """What that pool's workers compute with."""
    tenants: TenantLimits = DEFAULTS
    share_results: bool = False
    """Whether a result answers the same question of any tenant, or of its owner alone."""
    webhook_urls: UrlRules = PUBLIC_ONLY
    """Where webhooks may lead."""
    max_batches: int = 20
    """Batches of one owner that have not ended."""
    keep_alive_s: float = KEEP_ALIVE_S
    """Between two signs of life in a stream of events, which is also how long it outlives its key."""
    strangers: Strangers = field(default_factory=Strangers)
    refusals: Refusals = field(default_factory=Refusals)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is asked to stop: whoever waits for a job then answers with what there is."""
    _reading: CapacityLimiter = field(init=False, default_factory=lambda: CapacityLimiter(_CONCURRENT_READS))
    _drawing: CapacityLimiter = field(init=False, default_factory=lambda: CapacityLimiter(1))

    def catalogue_for(self, key: ApiKey) -> Catalogue:
        """What `key` may use: to it, nothing else is served."""
        return self.catalogue if key.models is None else self.catalogue.only(key.models)

    @property
    def administration(self) -> KeyAdministration:
        return KeyAdministration(self.keys, self.audit)

    async def read(self, work: Callable[[], Answer]) -> Answer:
        """Parse, tokenise and check what a client sent: off the event loop, a few at a time."""
        return await anyio.to_thread.run_sync(work, limiter=self._reading)

    async def draw(self, work: Callable[[], Answer]) -> Answer:
        """Draw a picture: off the event loop, one at a time, since matplotlib is not made for several threads."""
        return await anyio.to_thread.run_sync(work, limiter=self._drawing)


async def _services(request: Request) -> GatewayServices:
    services: GatewayServices = request.app.state.services
    return services


Services = Annotated[GatewayServices, Depends(_services)]
