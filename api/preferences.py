"""The `Prefer` header (RFC 7240): how long the client would wait for a job to end."""

import re
from typing import Annotated

from fastapi import Header

MAX_WAIT_S = 60

_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?([0-9]{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)

Prefer = Annotated[
    str | None,
    Header(
        description=f"`wait=N`: wait up to N seconds (at most {MAX_WAIT_S}) for the job to end before answering.",
        examples=["wait=30"],
    ),
]


def preferred_wait(prefer: str | None) -> int | None:
    """Seconds to wait, bounded; None without such a preference, or with one that is not understood (RFC 7240)."""
    match = _WAIT.search(prefer or "")
    return None if match is None else min(int(match[1]), MAX_WAIT_S)


def preference_applied(wait: int | None) -> dict[str, str]:
    return {} if wait is None else {"Preference-Applied": f"wait={wait}"}
