"""Signatures of the Standard Webhooks specification (symmetric, v1).

    signature = "v1," + base64(HMAC-SHA256(secret, "{id}.{timestamp}.{body}"))

One per secret, separated by spaces: while a secret is being exchanged, a receiver that knows either is content.
Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime

from services.webhooks.endpoint import key_of


def signed_headers(message_id: str, at: datetime, body: bytes, secrets: Sequence[str]) -> Mapping[str, str]:
    """The three headers of a message that is sent `at` that time, to the second."""
    timestamp = int(at.timestamp())
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(secret, content) for secret in secrets),
    }


def _signature(secret: str, content: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key_of(secret), content, hashlib.sha256)).decode()
