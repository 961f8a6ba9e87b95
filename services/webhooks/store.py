"""What telling needs from outside: a store of endpoints, and a queue of messages to be delivered.

A job or a batch that names an endpoint puts a message in the queue as it ends, in the same step of the store. Every
message has its name from what it is about, so it is queued once; it is delivered at least once, and a receiver tells a
repeated message by that name. Every implementation passes the same tests (`tests/services/webhooks/`) and raises
Unavailable(STORE_UNAVAILABLE) when what stands behind it does not answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.contracts.errors import Conflict, ErrorCode, Violation
from services.contracts.webhook import DeliveryOutcome
from services.webhooks.endpoint import MAX_ENDPOINTS, Endpoint, RetiringSecret

KEPT_OUTCOMES = 20
"""Of one endpoint, the latest."""

MAX_OF_AN_OWNER = 4
"""Messages of one owner under way at a time, over all couriers: slow receivers hold up their own owner alone."""


class WebhookStore(Protocol):
    def create(self, endpoint: Endpoint) -> None:
        """Raises Conflict(TOO_MANY_WEBHOOKS) when the owner has `MAX_ENDPOINTS` already."""

    def get(self, endpoint_id: str) -> Endpoint | None: ...

    def list(self, owner: str) -> tuple[Endpoint, ...]:
        """The owner's, oldest first."""

    def rotate(self, endpoint_id: str, secret: str, overlap_until: datetime | None) -> bool:
        """Put `secret` in the place of the present one, which signs on until then; whether the endpoint is there."""

    def delete(self, endpoint_id: str) -> bool:
        """Forget the endpoint; its messages are dropped. Whether it was there."""

    def outcomes(self, endpoint_id: str) -> Sequence[DeliveryOutcome]:
        """How its latest deliveries went, newest first, at most `KEPT_OUTCOMES`."""


@dataclass(frozen=True)
class Delivery:
    """A courier's right to try to deliver one message: `attempt` is the fencing token."""

    id: str
    """The message's own, the same at every try."""
    owner: str
    endpoint_id: str
    subject: str
    """The job or the batch that it is about."""
    attempt: int


@dataclass(frozen=True)
class Settlement:
    """What became of a try. `again_in_s`: null when the message is done with, delivered or not."""

    again_in_s: float | None = None
    outcome: DeliveryOutcome | None = None
    disable: bool = False
    """Whether the endpoint gets no more messages."""


class Deliveries(Protocol):
    def claim(self, at_most: int, lease_s: float) -> Sequence[Delivery]:
        """Messages that are due, owners in turn, at most `MAX_OF_AN_OWNER` of one under way.

        One that is not settled within `lease_s` is due again: its courier has died, perhaps after it was delivered.
        """

    def settle(self, delivery: Delivery, settlement: Settlement) -> bool:
        """Record a try; False, and no change, when the message is another courier's by now."""

    def waiting(self, owner: str) -> int:
        """Messages of the owner that are not done with."""


def not_to_be_told(store: WebhookStore, owner: str, endpoint_id: str) -> Violation | None:
    """Why a job or a batch of `owner` may not name this endpoint; the same words for none and someone else's."""
    endpoint = store.get(endpoint_id)
    if endpoint is None or endpoint.owner != owner:
        message = f"there is no webhook {endpoint_id!r}: register one with POST /v1/webhooks"
        return Violation("/webhook", ErrorCode.UNKNOWN_WEBHOOK, message)
    if endpoint.disabled_at is not None:
        message = f"{endpoint_id} is disabled, since its receiver answered 410: register another webhook"
        return Violation("/webhook", ErrorCode.UNKNOWN_WEBHOOK, message)
    return None


def rotated(endpoint: Endpoint, secret: str, overlap_until: datetime | None) -> Endpoint:
    retiring = None if overlap_until is None else RetiringSecret(secret=endpoint.secret, until=overlap_until)
    return endpoint.model_copy(update={"secret": secret, "retiring": retiring})


def too_many_webhooks() -> Conflict:
    message = f"you have {MAX_ENDPOINTS} webhooks, as many as may be: delete one first"
    return Conflict(ErrorCode.TOO_MANY_WEBHOOKS, message)


def message_id_of(subject: str) -> str:
    """The name of the message about the end of a job or a batch."""
    return "msg_" + subject.removeprefix("job_")
