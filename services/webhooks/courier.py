"""The courier: takes due messages to their endpoints, and settles what became of each.

1. claim what is due under a lease, as much as there are hands free;
2. read the endpoint and the job or batch; a message of which either is gone is dropped;
3. sign the body with every secret that is good now, and post it;
4. accepted: done. Gone (410): done, and the endpoint is disabled. Else again after a pause, until the last try.

One runs in every gateway process. Should it die between 3 and 4, the lease ends and the message is sent again.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Self

from services.contracts.errors import Unavailable
from services.contracts.webhook import BatchEnded, BatchSummary, DeliveryOutcome, JobEnded
from services.jobs.ids import is_batch_id
from services.jobs.ports import JobStore
from services.jobs.record import JobRecord
from services.webhooks.endpoint import Endpoint
from services.webhooks.poster import TIMEOUT_S, Poster, Reply
from services.webhooks.schedule import MAX_TRIES, pause_after
from services.webhooks.signing import signed_headers
from services.webhooks.store import Deliveries, Delivery, Settlement, WebhookStore

HANDS = 32
"""Messages under way at a time, in one process."""

LEASE_S = TIMEOUT_S + 10
LOOK_EVERY_S = 0.5
PARTING_S = 3.0
"""What messages under way may still take when the process ends; the others are sent again by another courier."""

_SETTLING_PAUSES_S = (0.5, 2.0)

EndedBatches = Callable[[str], BatchSummary | None]
"""A batch that has ended, by its id; None for one that has not, or is gone. Raises Unavailable."""

_log = logging.getLogger(__name__)


class Courier:
    """Works for the length of an `async with` block."""

    def __init__(
        self,
        deliveries: Deliveries,
        webhooks: WebhookStore,
        jobs: JobStore,
        poster: Poster,
        *,
        batches: EndedBatches = lambda _batch_id: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        parting_s: float = PARTING_S,
    ) -> None:
        self._deliveries = deliveries
        self._webhooks = webhooks
        self._jobs = jobs
        self._poster = poster
        self._batches = batches
        self._clock = clock
        self._parting_s = parting_s
        self._under_way: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._round: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._round = asyncio.create_task(self._go_round())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._round is not None:
            await _end(self._round)
        if self._under_way:
            _done, late = await asyncio.wait(self._under_way, timeout=self._parting_s)
            for task in late:
                await _end(task)

    async def round(self) -> int:
        """Start on what is due, as far as there are hands free; how many that were. Raises Unavailable."""
        free = HANDS - len(self._under_way)
        claimed = await asyncio.to_thread(self._deliveries.claim, free, LEASE_S) if free else ()
        for delivery in claimed:
            task = asyncio.create_task(self._deliver(delivery))
            self._under_way.add(task)
            task.add_done_callback(self._done_with)
        return len(claimed)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _done_with(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._freed.set()

    async def _go_round(self) -> None:
        while True:
            self._freed.clear()
            try:
                started = await self.round()
            except Unavailable as error:
                _log.warning("the courier waits: %s", error.message)
                started = 0
            except Exception:
                _log.exception("a round of the courier failed")
                started = 0
            if not started:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), LOOK_EVERY_S)

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._settle(delivery, await self._try(delivery))
        except Unavailable as error:
            _log.warning("%s is sent again once its lease has ended: %s", delivery.id, error.message)
        except Exception:
            _log.exception("delivering %s failed", delivery.id)

    async def _try(self, delivery: Delivery) -> Settlement:
        # So that a record which cannot be read, or a courier that always dies over it, does not come back for ever.
        if delivery.attempt > MAX_TRIES:
            return Settlement()
        endpoint = await asyncio.to_thread(self._webhooks.get, delivery.endpoint_id)
        body = await asyncio.to_thread(self._message_about, delivery.subject)
        if endpoint is None or endpoint.disabled_at is not None or body is None:
            return Settlement()
        sent_at = self._clock()
        signed = signed_headers(delivery.id, sent_at, body, endpoint.signing_secrets(sent_at))
        reply = await self._poster.post(endpoint.url, {"content-type": "application/json", **signed}, body)
        return self._settlement(delivery, endpoint, reply)

    def _message_about(self, subject: str) -> bytes | None:
        """The body; None when there is nothing to tell of."""
        if is_batch_id(subject):
            batch = self._batches(subject)
            return None if batch is None else message_about_batch(batch)
        job = self._jobs.get(subject)
        return None if job is None or not job.status.terminal else message_about(job)

    def _settlement(self, delivery: Delivery, endpoint: Endpoint, reply: Reply) -> Settlement:
        now = self._clock()
        over = reply.accepted or reply.gone
        pause = None if over else pause_after(delivery.attempt)
        about_batch = is_batch_id(delivery.subject)
        outcome = DeliveryOutcome(
            message_id=delivery.id,
            job_id=None if about_batch else delivery.subject,
            batch_id=delivery.subject if about_batch else None,
            at=now,
            attempt=delivery.attempt,
            outcome="delivered" if reply.accepted else "gave_up" if pause is None else "will_retry",
            status=reply.status,
            reason=reply.failure,
            next_attempt_at=None if pause is None else now + timedelta(seconds=pause),
        )
        _log.info("%s: %s", delivery.id, outcome.outcome, extra={"fields": _told(delivery, endpoint, outcome)})
        return Settlement(pause, outcome, disable=reply.gone)

    async def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Keeps trying for a moment: what is not settled is sent again."""
        for pause in _SETTLING_PAUSES_S:
            try:
                await asyncio.to_thread(self._deliveries.settle, delivery, settlement)
            except Unavailable:
                await asyncio.sleep(pause)
            else:
                return
        await asyncio.to_thread(self._deliveries.settle, delivery, settlement)


def message_about(job: JobRecord) -> bytes:
    """The body that tells of the job's end: the same at every try, but for when a job of a batch expires."""
    assert job.finished_at is not None
    event = JobEnded.model_validate(
        {"type": f"job.{job.status}", "timestamp": job.finished_at, "data": job.summary().model_dump()}
    )
    return event.model_dump_json().encode()


def message_about_batch(batch: BatchSummary) -> bytes:
    """The body that tells of the batch's end, the same at every try."""
    event = BatchEnded.model_validate(
        {"type": f"batch.{batch.status}", "timestamp": batch.finished_at, "data": batch.model_dump()}
    )
    return event.model_dump_json().encode()


def _told(delivery: Delivery, endpoint: Endpoint, outcome: DeliveryOutcome) -> Mapping[str, object]:
    """What a line of the log says: the URL is the tenant's, and may hold a secret."""
    return {
        "webhook": endpoint.id,
        "attempt": delivery.attempt,
        "status": outcome.status,
        "reason": outcome.reason,
    }


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
