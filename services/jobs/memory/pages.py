"""Pages of jobs, by the number of their creation."""

from collections.abc import Sequence

from services.jobs.memory.cursor import write_cursor
from services.jobs.ports import Page
from services.jobs.record import JobRecord


def page_of(found: Sequence[tuple[int, JobRecord]], limit: int) -> Page:
    """The first `limit` of `found`, with a cursor if there are more."""
    shown = found[:limit]
    return Page(
        jobs=tuple(record.summary() for _, record in shown),
        cursor=write_cursor(shown[-1][0]) if len(found) > limit else None,
    )
