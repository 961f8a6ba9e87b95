"""Following a job: as server-sent events, or until it ends.

Every event is the whole job as it was then, named by its status: the first is a snapshot, the last is `succeeded`,
`failed` or `cancelled`. One that brings new tokens of a job that generates is named `tokens` instead. A comment keeps
an idle connection open; if the job is queued and its place has changed by then, its latest event comes again instead.
`Last-Event-ID` resumes after the last event seen.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from services.contracts.errors import LensdError
from services.contracts.job import JobState, JobStatus, JobTokens
from services.jobs.ports import JobEvents
from services.jobs.record import JobEvent

KEEP_ALIVE_S = 15.0
RECONNECT_MS = 2_000

_EVENT_ID = re.compile(r"[0-9]{1,19}")


def resume_point(last_event_id: str | None) -> str | None:
    """The event to resume after; anything that cannot be one of our ids starts over with a snapshot."""
    return last_event_id if last_event_id is not None and _EVENT_ID.fullmatch(last_event_id) else None


async def stream(
    events: AsyncGenerator[JobEvent, None],
    closing: asyncio.Event,
    may_follow: Callable[[], Awaitable[bool]],
    queued_ahead: Callable[[], Awaitable[int | None]],
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncGenerator[bytes, None]:
    """`events` in the wire format of server-sent events.

    Ends early when `closing` is set, the job is deleted or the client no longer `may_follow` it, which is asked every
    `keep_alive_s` seconds: the client reconnects, and learns what became of it. `queued_ahead` is asked for with every
    event of a queued job, and as often while nothing happens.
    """
    yield f"retry: {RECONNECT_MS}\n\n".encode()
    clock = asyncio.get_running_loop().time
    asked_at = clock()
    latest: JobEvent | None = None
    ahead: int | None = None
    with suppress(LensdError):
        async with aclosing(_follow(events, closing, keep_alive_s)) as following:
            async for event in following:
                if clock() - asked_at >= keep_alive_s:
                    asked_at = clock()
                    if not await may_follow():
                        return
                latest, before = event or latest, ahead
                queued = latest is not None and latest.summary.status is JobStatus.QUEUED
                ahead = await queued_ahead() if queued else None
                if latest is not None and (event is latest or ahead not in (None, before)):
                    yield _frame(latest, ahead)
                else:
                    yield b": keep-alive\n\n"


async def ended_within(events: JobEvents, job_id: str, seconds: float, closing: asyncio.Event) -> bool:
    """Whether the job ended within `seconds`; raises NotFound(JOB_NOT_FOUND). Waits for events, never polls."""
    try:
        async with asyncio.timeout(seconds), aclosing(_follow(events.watch(job_id), closing, None)) as following:
            async for event in following:
                if event is not None and event.summary.status.terminal:
                    return True
    except TimeoutError:
        pass
    return False


async def _follow(
    events: AsyncGenerator[JobEvent, None], closing: asyncio.Event, keep_alive_s: float | None
) -> AsyncGenerator[JobEvent | None, None]:
    """The events as they come, and None whenever `keep_alive_s` passes without one."""
    closed = asyncio.ensure_future(closing.wait())
    upcoming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait((upcoming, closed), timeout=keep_alive_s, return_when=asyncio.FIRST_COMPLETED)
            if upcoming in done:
                event = upcoming.result()
                if event is None:
                    return
                yield event
                upcoming = asyncio.ensure_future(anext(events, None))
            elif closed in done:
                return
            else:
                yield None
    finally:
        closed.cancel()
        upcoming.cancel()
        await asyncio.gather(closed, upcoming, return_exceptions=True)
        await events.aclose()


def _frame(event: JobEvent, queued_ahead: int | None) -> bytes:
    state = JobState(**dict(event.summary), queued_ahead=queued_ahead)
    name, data = str(state.status), state.model_dump_json()
    if event.tokens:
        name, data = "tokens", JobTokens(**dict(state), tokens=event.tokens).model_dump_json()
    return f"id: {event.id}\nevent: {name}\ndata: {data}\n\n".encode()
