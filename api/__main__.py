"""The gateway process, `python -m api`: the composition root that gives the application its real ports."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from pydantic import ValidationError

from api.app import create_app
from api.batch_intake import GatewayIntake
from api.batches import ended_batch
from api.dependencies import GatewayServices
from api.limits import RequestLimits
from api.metrics import GatewayMetrics
from api.server import make_server, run
from api.settings import GatewaySettings, explain
from api.strangers import Strangers
from services import logs
from services.adapters.celery_doorbell import CeleryDoorbell
from services.adapters.folder_blobs import FolderBlobs
from services.adapters.redis_audit import RedisAuditLog
from services.adapters.redis_batches import RedisBatchStore
from services.adapters.redis_blobs import RedisBlobs
from services.adapters.redis_cache import RedisResultCache
from services.adapters.redis_client import UnsuitableServerError, check_server, make_client
from services.adapters.redis_deliveries import RedisDeliveries
from services.adapters.redis_doorbell import RedisDoorbell
from services.adapters.redis_events import RedisJobEvents
from services.adapters.redis_jobs import RedisJobStore
from services.adapters.redis_keys import RedisKeyStore
from services.adapters.redis_labels import RedisLabelStore
from services.adapters.redis_webhooks import RedisWebhookStore
from services.adapters.redis_workers import RedisWorkers
from services.adapters.webhook_poster import HttpPoster
from services.batches.keeper import Keeper
from services.batches.work import BatchWork
from services.catalogue.catalogue import open_catalogue
from services.catalogue.feature_index import open_prepared
from services.catalogue.feature_indexes import FeatureIndexes
from services.catalogue.resolve import Limits
from services.contracts.errors import LensdError
from services.jobs.cache import PoolRunner
from services.jobs.reaper import Reaper
from services.metrics import listening
from services.tenants.handover import hand_over
from services.tenants.keys import ensure_first_key
from services.tenants.limits import Rate
from services.webhooks.courier import Courier
from services.webhooks.courier_thread import CourierThread
from services.webhooks.urls import UrlRules

log = logging.getLogger("api")

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that reads a large body or a batch may keep the event loop waiting; Python's own is 5 ms."""

KEEPER_RESTS = 1.0
"""Seconds that the keeper of batches leaves to requests after each second of its own work."""


def main() -> int:
    """Serve until asked to stop; 1, with one line that says why, when that cannot be."""
    try:
        settings = GatewaySettings()
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
        return 1
    logs.configure(settings.log_format, settings.log_level)
    try:
        _prepare_store(settings)
    except (LensdError, UnsuitableServerError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    services, app = build(settings)
    log.info("serving %d models and %d SAEs", len(services.catalogue.models), len(services.catalogue.saes))
    server = make_server(
        app,
        services.closing,
        host=settings.host,
        port=settings.port,
        shutdown_s=settings.shutdown_s,
        patience_s=settings.patience_s,
        trusted_proxies=settings.trusted_proxies,
    )
    run(server)
    return 0


def build(settings: GatewaySettings) -> tuple[GatewayServices, FastAPI]:
    """The application on Redis and the file system. Connects to nothing until it is served."""
    policy = settings.job_policy()
    url = settings.store_url
    client = make_client(url, patient=False)
    catalogue = open_catalogue(settings.home)
    events = RedisJobEvents(url)
    workers = RedisWorkers(client)
    services = GatewayServices(
        store=RedisJobStore(client, policy),
        results=RedisResultCache(client, policy),
        events=events,
        doorbell=RedisDoorbell(client, CeleryDoorbell(url)),
        blobs=RedisBlobs(client, settings.max_redis_blobs)
        if settings.blobs == "redis"
        else FolderBlobs(settings.home / "blobs"),
        workers=workers,
        keys=RedisKeyStore(client),
        labels=RedisLabelStore(client),
        batches=RedisBatchStore(client, policy),
        audit=RedisAuditLog(client),
        webhooks=RedisWebhookStore(client),
        catalogue=catalogue,
        features=FeatureIndexes(catalogue, partial(open_prepared, catalogue)),
        limits=Limits(
            tokens=settings.max_job_tokens,
            token_layers=settings.max_job_token_layers,
            output_bytes=settings.max_job_output,
        ),
        pool=settings.pool,
        runner=PoolRunner(workers, settings.pool, kept_s=policy.heartbeat_s),
        tenants=settings.tenant_limits(),
        share_results=settings.share_results,
        webhook_urls=UrlRules(settings.webhook_hosts),
        max_batches=settings.max_owner_batches,
        strangers=Strangers(Rate(settings.failed_auth_per_second, settings.failed_auth_burst)),
    )
    reaper = Reaper(services.store, services.blobs, services.doorbell, every_s=policy.reap_every_s)
    poster = HttpPoster(services.webhook_urls)
    courier = CourierThread(
        Courier(
            RedisDeliveries(client),
            services.webhooks,
            services.store,
            poster,
            batches=partial(ended_batch, services.batches),
        )
    )
    intake = GatewayIntake(services, settings.max_body)
    work = BatchWork(services.batches, services.blobs, intake, settings.max_batch_jobs)
    keeper = Keeper(services.batches, work, rest=KEEPER_RESTS)

    metrics = GatewayMetrics(services.store, services.workers, settings.pool)

    @asynccontextmanager
    async def background(_app: FastAPI) -> AsyncIterator[None]:
        with listening(metrics.registry, settings.metrics_host, settings.metrics_port):
            async with events:
                for one in (reaper, courier, keeper):
                    one.start()
                try:
                    yield
                finally:
                    await asyncio.gather(*(asyncio.to_thread(one.stop) for one in (keeper, courier, reaper)))
        client.close()

    limits = RequestLimits(settings.max_body, settings.max_lines, patience_s=settings.patience_s)
    return services, create_app(services, limits, background, settings.cors_origins, metrics.note)


def _prepare_store(settings: GatewaySettings) -> None:
    """Wait for the store, refuse one that lensd cannot rely on, and see to it that there is an API key."""
    client = make_client(settings.store_url, patient=True)
    try:
        check_server(client, ephemeral=settings.store_ephemeral)
        bootstrap = None if settings.bootstrap_key is None else settings.bootstrap_key.get_secret_value()
        fresh = ensure_first_key(RedisKeyStore(client), bootstrap)
    finally:
        client.close()
    if fresh is not None:
        settings.home.mkdir(parents=True, exist_ok=True)
        hand_over(fresh, settings.home, sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
