"""Following jobs through one stream that all of them share.

1. One task per process reads `lensd:events`; a read that hangs ends with the socket's timeout.
2. It hands each event to the watchers of that job, in memory: a watcher costs the server nothing while it waits.
3. After any outage it starts at the stream's end and tells every watcher to catch up from its job's own events.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import orjson

from services.adapters.redis_client import make_async_client, store_errors
from services.adapters.redis_records import MALFORMED, SUMMARY_FIELDS, Hash, hash_of, record_or_none, state_of
from services.contracts.errors import ErrorCode, NotFound, Unavailable
from services.contracts.job import JobSummary
from services.jobs.record import JobEvent, JobRecord

_log = logging.getLogger(__name__)

BLOCK_MS = 2_000
READ_AT_ONCE = 500
LONGEST_PAUSE_S = 1.0
KEPT_PER_WATCHER = 64

_State = dict[str, Any]
_Entry = tuple[bytes, dict[bytes, bytes]]


class RedisJobEvents:
    """Implements `services.jobs.ports.JobEvents` between `async with` and its end."""

    def __init__(self, url: str) -> None:
        self._client = make_async_client(url)
        self._watchers: defaultdict[str, set[_Watcher]] = defaultdict(set)
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._client.aclose()

    async def watch(self, job_id: str, after: str | None = None) -> AsyncGenerator[JobEvent, None]:
        with self._attached(job_id) as watcher:
            record = await self._record(job_id)
            if record is None:
                raise NotFound(ErrorCode.JOB_NOT_FOUND, f"there is no job {job_id}")
            summary = record.summary()
            seen = _resume_point(after, record.version)
            events: Sequence[JobEvent] | None = await self._kept(summary, seen)
            if summary.status.terminal and not events:
                return
            while events is not None:
                for event in events:
                    seen = int(event.id)
                    yield event
                    if event.summary.status.terminal:
                        return
                events = await self._next(watcher, summary, seen)

    async def _next(self, watcher: "_Watcher", summary: JobSummary, seen: int) -> Sequence[JobEvent] | None:
        """What comes after event `seen`, perhaps nothing yet; None when the job is lost."""
        news = await watcher.news()
        if news is not None:
            version, state = news
            return [_event(summary, version, state)] if version > seen else []
        try:
            record = await self._record(summary.id)
            if record is None:
                return None
            return await self._kept(summary, seen if seen <= record.version else record.version - 1)
        except Unavailable:
            await asyncio.sleep(LONGEST_PAUSE_S)
            watcher.tell(None)
            return []

    async def _record(self, job_id: str) -> JobRecord | None:
        with store_errors():
            values = await cast(
                "Awaitable[list[bytes | None]]", self._client.hmget(f"lensd:job:{job_id}", SUMMARY_FIELDS)
            )
        return record_or_none(job_id, hash_of(SUMMARY_FIELDS, values))

    async def _kept(self, summary: JobSummary, seen: int) -> Sequence[JobEvent]:
        """The job's events after `seen`, as far as they are kept."""
        with store_errors():
            kept = await cast("Awaitable[list[bytes]]", self._client.lrange(f"lensd:events:{summary.id}", 0, -1))
        events = (_event(summary, *_news(_unpacked(entry))) for entry in kept)
        return [event for event in events if int(event.id) > seen]

    @contextmanager
    def _attached(self, job_id: str) -> Iterator["_Watcher"]:
        watcher = _Watcher()
        self._watchers[job_id].add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def _read(self) -> None:
        """Read the shared stream for ever, starting over after every outage."""
        pause = 0.05
        while True:
            try:
                async for entry in self._entries():
                    pause = 0.05
                    self._deliver(entry)
            except Exception as error:
                _log.warning("lost the stream of events, connecting again: %r", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _entries(self) -> AsyncGenerator[_Entry, None]:
        newest = cast("list[_Entry]", await self._client.xrevrange("lensd:events", count=1))
        last = newest[0][0] if newest else b"0-0"
        for watcher in [watcher for watchers in self._watchers.values() for watcher in watchers]:
            watcher.tell(None)
        while True:
            answer = await self._client.xread({"lensd:events": last}, count=READ_AT_ONCE, block=BLOCK_MS)
            for _, entries in cast("list[tuple[bytes, list[_Entry]]]", answer):
                for entry in entries:
                    last = entry[0]
                    yield entry

    def _deliver(self, entry: _Entry) -> None:
        fields = _decoded(entry[1])
        watchers = self._watchers.get(fields.get("job", b"").decode(errors="replace"))
        if not watchers:
            return
        try:
            news = _news(fields)
        except MALFORMED as error:
            _log.error("an event is malformed: %s", type(error).__name__)
            return
        for watcher in watchers:
            watcher.tell(news)


class _Watcher:
    """What one watcher has not taken in yet; None stands for an outage. One that is slow misses the oldest."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, _State] | None] = deque(maxlen=KEPT_PER_WATCHER)
        self._told = asyncio.Event()

    def tell(self, news: tuple[int, _State] | None) -> None:
        self._waiting.append(news)
        self._told.set()

    async def news(self) -> tuple[int, _State] | None:
        await self._told.wait()
        first = self._waiting.popleft()
        if not self._waiting:
            self._told.clear()
        return first


def _resume_point(after: str | None, version: int) -> int:
    """The version to go on after: without one of the job's own to resume from, so that the latest event comes first."""
    resumes = after is not None and after.isascii() and after.isdecimal() and int(after) <= version
    return int(after or 0) if resumes else version - 1


def _news(fields: Hash) -> tuple[int, _State]:
    return int(fields["version"]), state_of(fields)


def _event(summary: JobSummary, version: int, state: _State) -> JobEvent:
    return JobEvent(id=str(version), summary=summary.model_copy(update=state))


def _unpacked(entry: bytes) -> Hash:
    parts = orjson.loads(entry)
    return {name: str(value).encode() for name, value in zip(parts[::2], parts[1::2], strict=True)}


def _decoded(fields: dict[bytes, bytes]) -> Hash:
    return {name.decode(errors="replace"): value for name, value in fields.items()}
