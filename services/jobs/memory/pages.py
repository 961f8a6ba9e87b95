"""Pages of jobs, by the number of their creation."""

import base64
from collections.abc import Sequence

from services.contracts.errors import ErrorCode, Refused
from services.jobs.ports import Page
from services.jobs.record import JobRecord


def page_of(found: Sequence[tuple[int, JobRecord]], limit: int) -> Page:
    """The first `limit` of `found`, with a cursor if there are more."""
    shown = found[:limit]
    return Page(
        jobs=tuple(record.summary() for _, record in shown),
        cursor=base64.urlsafe_b64encode(b"%d" % shown[-1][0]).decode() if len(found) > limit else None,
    )


def read_cursor(cursor: str) -> int:
    """The number of the last job that was shown; raises Refused."""
    try:
        return int(base64.urlsafe_b64decode(cursor))
    except ValueError as error:
        raise Refused(ErrorCode.INVALID_REQUEST, "this cursor is not one that a page of jobs came with") from error
