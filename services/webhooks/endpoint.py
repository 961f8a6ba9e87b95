"""An endpoint: where one tenant wants to be told, and the secrets that prove who tells."""

import base64
import re
import secrets
from datetime import datetime
from typing import Annotated

from pydantic import Field

from services.contracts.base import Contract

MAX_ENDPOINTS = 20
"""Of one owner."""

MAX_OVERLAP_S = 30 * 24 * 3600
"""How long the secret before a rotation may go on signing."""

_ID = re.compile(r"wh_[a-z2-7]{26}")
_SECRET_BYTES = 32
_PREFIX = "whsec_"


class RetiringSecret(Contract):
    """The secret before the last rotation, which signs as well for a while."""

    secret: Annotated[str, Field(repr=False)]
    until: datetime


class Endpoint(Contract):
    """`secret` is kept as it is: signing needs it. `disabled_at`: its receiver said that it is gone for good."""

    id: str
    owner: str
    url: str
    description: str | None
    secret: Annotated[str, Field(repr=False)]
    retiring: RetiringSecret | None = None
    created_at: datetime
    disabled_at: datetime | None = None

    def signing_secrets(self, now: datetime) -> tuple[str, ...]:
        """Those that sign at `now`, the present one first."""
        if self.retiring is None or self.retiring.until <= now:
            return (self.secret,)
        return (self.secret, self.retiring.secret)


def new_endpoint_id() -> str:
    """`wh_` and 26 characters of a-z2-7: 130 random bits."""
    return "wh_" + base64.b32encode(secrets.token_bytes(17)).decode().lower()[:26]


def is_endpoint_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def new_secret() -> str:
    """256 random bits, written as the Standard Webhooks specification wants it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The bytes that sign."""
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
