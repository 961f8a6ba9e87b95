"""Kombu's way through Redis, made to survive messages that lensd did not write.

Out of the box one malformed message ends a worker's consumer for good ("unrecoverable error"). Here it is dropped with
a line in the log: a doorbell carries nothing that could be lost, and the reaper rings again for jobs that wait.
"""

import binascii
import logging
from typing import Any

from kombu import transport
from kombu.transport.redis import Channel, Transport
from kombu.transport.virtual import Message

_log = logging.getLogger(__name__)

_UNREADABLE = (ValueError, TypeError, AttributeError, RecursionError)
"""What reading text as JSON, and JSON as a message, may raise."""


class MalformedRing(ValueError):
    """A message that is not one of Celery's."""


class _Ring(Message):
    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        try:
            super().__init__(payload, channel, **options)
            places = (self.delivery_info["exchange"], self.delivery_info["routing_key"], self.delivery_tag)
            if not isinstance(self.headers, dict) or not all(isinstance(place, str) for place in places):
                raise MalformedRing("no headers, or nowhere to go back to")
        except (KeyError, binascii.Error, *_UNREADABLE) as error:
            raise MalformedRing(type(error).__name__) from error


class _EnduringChannel(Channel):
    Message = _Ring

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # unknown to the stubs
        except _UNREADABLE as damage:
            _quarantined(damage)
            return True

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: Any, **options: Any) -> Any:
        def guarded(message: Any) -> Any:
            try:
                return callback(message)
            except Exception as damage:
                # Kombu counts KeyError among the errors of a connection; out of a message's reader it is none.
                if isinstance(damage, EnduringTransport.connection_errors) and not isinstance(damage, KeyError):
                    raise
                self._drop(message, damage)

        return super().basic_consume(queue, no_ack, guarded, consumer_tag, **options)

    @staticmethod
    def _drop(message: Any, damage: Exception) -> None:
        _quarantined(damage)
        if not message.acknowledged:
            message.reject()


class EnduringTransport(Transport):
    """Kombu's Redis transport but for malformed messages."""

    Channel = _EnduringChannel


def use_enduring_transport() -> None:
    """Have `redis://` and `rediss://` mean it in this process; TLS and all else follows from the URL as before."""
    for scheme in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:{EnduringTransport.__name__}"
        # Kombu remembers what a scheme meant when it was first used.
        transport._transport_cache.pop(scheme, None)  # type: ignore[attr-defined]  # noqa: SLF001


def _quarantined(damage: Exception) -> None:
    # The error itself may quote the message, which anybody may have written.
    _log.error("quarantined a malformed doorbell: %s", type(damage).__name__)
