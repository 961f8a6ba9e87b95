"""The fakes of the endpoint store and of the queue of messages, for tests."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from services.contracts.webhook import DeliveryOutcome
from services.jobs.record import JobRecord, NewJob
from services.webhooks.endpoint import MAX_ENDPOINTS, Endpoint
from services.webhooks.store import (
    KEPT_OUTCOMES,
    MAX_OF_AN_OWNER,
    Delivery,
    Settlement,
    message_id_of,
    rotated,
    too_many_webhooks,
)

Clock = Callable[[], datetime]


class MemoryWebhookStore:
    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._outcomes: defaultdict[str, list[DeliveryOutcome]] = defaultdict(list)

    def create(self, endpoint: Endpoint) -> None:
        if len(self.list(endpoint.owner)) >= MAX_ENDPOINTS:
            raise too_many_webhooks()
        self._endpoints[endpoint.id] = endpoint

    def get(self, endpoint_id: str) -> Endpoint | None:
        return self._endpoints.get(endpoint_id)

    def list(self, owner: str) -> tuple[Endpoint, ...]:
        return tuple(each for each in self._endpoints.values() if each.owner == owner)

    def rotate(self, endpoint_id: str, secret: str, overlap_until: datetime | None) -> bool:
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is not None:
            self._endpoints[endpoint_id] = rotated(endpoint, secret, overlap_until)
        return endpoint is not None

    def delete(self, endpoint_id: str) -> bool:
        self._outcomes.pop(endpoint_id, None)
        return self._endpoints.pop(endpoint_id, None) is not None

    def outcomes(self, endpoint_id: str) -> Sequence[DeliveryOutcome]:
        return tuple(self._outcomes[endpoint_id])

    def note(self, endpoint_id: str, settlement: Settlement, now: datetime) -> None:
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is None:
            return
        if settlement.outcome is not None:
            self._outcomes[endpoint_id].insert(0, settlement.outcome)
            del self._outcomes[endpoint_id][KEPT_OUTCOMES:]
        if settlement.disable and endpoint.disabled_at is None:
            self._endpoints[endpoint_id] = endpoint.model_copy(update={"disabled_at": now})


@dataclass
class _Message:
    delivery: Delivery
    due: datetime
    held_until: datetime | None = None


class MemoryDeliveries:
    """Its `queue` belongs into `MemoryJobStore.on_end`, and `queue_about` is for the ends of batches."""

    def __init__(self, webhooks: MemoryWebhookStore, clock: Clock = lambda: datetime.now(UTC)) -> None:
        self._webhooks = webhooks
        self._clock = clock
        self._lock = threading.RLock()
        self._messages: dict[str, _Message] = {}

    def queue(self, job: NewJob, record: JobRecord) -> None:
        self.queue_about(record.id, record.owner, job.ties.webhook)

    def queue_about(self, subject: str, owner: str, endpoint_id: str | None) -> None:
        if endpoint_id is not None and self._webhooks.get(endpoint_id) is not None:
            delivery = Delivery(message_id_of(subject), owner, endpoint_id, subject, attempt=0)
            with self._lock:
                self._messages[delivery.id] = _Message(delivery, self._clock())

    def claim(self, at_most: int, lease_s: float) -> Sequence[Delivery]:
        claimed: list[Delivery] = []
        with self._lock:
            while len(claimed) < at_most and (turn := self._turn()):
                claimed += [self._take(message, lease_s) for message in turn[: at_most - len(claimed)]]
        return claimed

    def _take(self, message: _Message, lease_s: float) -> Delivery:
        message.delivery = replace(message.delivery, attempt=message.delivery.attempt + 1)
        message.due = message.held_until = self._clock() + timedelta(seconds=lease_s)
        return message.delivery

    def _turn(self) -> list[_Message]:
        """The next due message of every owner who may have one more under way."""
        now = self._clock()
        first: dict[str, _Message] = {}
        for message in sorted(self._messages.values(), key=lambda each: each.due):
            if message.due <= now and self._under_way(message.delivery.owner) < MAX_OF_AN_OWNER:
                first.setdefault(message.delivery.owner, message)
        return list(first.values())

    def _under_way(self, owner: str) -> int:
        now = self._clock()
        held = (each.held_until for each in self._messages.values() if each.delivery.owner == owner)
        return sum(until is not None and until > now for until in held)

    def settle(self, delivery: Delivery, settlement: Settlement) -> bool:
        with self._lock:
            message = self._messages.get(delivery.id)
            if message is None or message.delivery.attempt != delivery.attempt:
                return False
            if settlement.again_in_s is None:
                del self._messages[delivery.id]
            else:
                message.due = self._clock() + timedelta(seconds=settlement.again_in_s)
                message.held_until = None
            self._webhooks.note(delivery.endpoint_id, settlement, self._clock())
            return True

    def waiting(self, owner: str) -> int:
        with self._lock:
            return sum(each.delivery.owner == owner for each in self._messages.values())
