"""Following jobs through one stream that all of them share.

1. One task per process reads `lensd:events`; a read that hangs ends with the socket's timeout.
2. It hands each event to the watchers of that job, in memory: a watcher costs the server nothing while it waits.
3. Events only count the batches of new tokens of a job that generates: a watcher reads those it has not had.
4. After any outage it starts at the stream's end and tells every watcher to catch up from its job's own events.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast

import orjson
from redis.asyncio import Redis

from services.adapters.redis_client import make_async_client, store_errors
from services.adapters.redis_records import (
    MALFORMED,
    SUMMARY_FIELDS,
    Hash,
    hash_of,
    record_or_none,
    state_of,
    unpacked_tokens,
)
from services.contracts.errors import ErrorCode, NotFound, Unavailable
from services.contracts.generation import NewTokens
from services.jobs.record import JobEvent, JobRecord
from services.jobs.token_news import joined

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
            record, kept = await self._look(job_id)
            if record is None:
                raise NotFound(ErrorCode.JOB_NOT_FOUND, f"there is no job {job_id}")
            summary = record.summary()
            resumes = _resumes(after, record.version)
            seen = int(after or 0) if resumes else record.version - 1
            reader = _TokenReader(self._client, job_id, next((n for n in kept if resumes and n.version == seen), None))
            news: Sequence[_News] | None = [one for one in kept if one.version > seen]
            if summary.status.terminal and not news:
                return
            while news is not None:
                for one in news:
                    seen = one.version
                    yield JobEvent(str(seen), summary.model_copy(update=one.state), await reader.tokens(one))
                    if one.state["status"].terminal:
                        return
                news = await self._next(watcher, job_id, seen)

    async def _next(self, watcher: "_Watcher", job_id: str, seen: int) -> Sequence["_News"] | None:
        """What comes after event `seen`, perhaps nothing yet; None when the job is lost."""
        news = await watcher.news()
        if news is not None:
            return [news] if news.version > seen else []
        try:
            record, kept = await self._look(job_id)
            if record is None:
                return None
            last = seen if seen <= record.version else record.version - 1
            return [one for one in kept if one.version > last]
        except Unavailable:
            await asyncio.sleep(LONGEST_PAUSE_S)
            watcher.tell(None)
            return []

    async def _look(self, job_id: str) -> tuple[JobRecord | None, Sequence["_News"]]:
        """The job, and its events as far as they are kept, in one round trip: a thousand watchers may come at once."""
        with store_errors():
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.hmget(f"lensd:job:{job_id}", SUMMARY_FIELDS)
                pipeline.lrange(f"lensd:events:{job_id}", 0, -1)
                values, kept = await pipeline.execute()
        record = record_or_none(job_id, hash_of(SUMMARY_FIELDS, values))
        return record, [_news(_unpacked(entry)) for entry in kept]

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


@dataclass(frozen=True)
class _News:
    """An event as it lies on the server; `batches` of tokens have been written by then in this attempt."""

    version: int
    state: _State
    batches: int


class _TokenReader:
    """What one watcher has had of the tokens that a job writes; all so far are new to it unless it resumes."""

    def __init__(self, client: Redis, job_id: str, last: _News | None) -> None:
        self._client = client
        self._key = f"lensd:tokens:{job_id}"
        self._attempt = last.state["attempt"] if last else 0
        self._batches = last.batches if last else 0

    async def tokens(self, news: _News) -> tuple[NewTokens, ...]:
        """Those that came since the last call; none once the attempt has ended, or while the store does not answer."""
        if news.state["attempt"] != self._attempt:
            self._attempt, self._batches = news.state["attempt"], 0
        if news.batches <= self._batches:
            return ()
        try:
            with store_errors():
                batches = await cast(
                    "Awaitable[list[bytes]]", self._client.lrange(self._key, self._batches, news.batches - 1)
                )
            found = joined(piece for batch in batches for piece in unpacked_tokens(batch))
        except Unavailable:
            return ()
        except MALFORMED as error:
            _log.error("a batch of tokens is malformed: %s", type(error).__name__)
            return ()
        self._batches = news.batches
        return found


class _Watcher:
    """What one watcher has not taken in yet; None stands for an outage. One that is slow misses the oldest."""

    def __init__(self) -> None:
        self._waiting: deque[_News | None] = deque(maxlen=KEPT_PER_WATCHER)
        self._told = asyncio.Event()

    def tell(self, news: _News | None) -> None:
        self._waiting.append(news)
        self._told.set()

    async def news(self) -> _News | None:
        await self._told.wait()
        first = self._waiting.popleft()
        if not self._waiting:
            self._told.clear()
        return first


def _resumes(after: str | None, version: int) -> bool:
    """Whether `after` is an event of the job's own to go on after; else the latest event comes first."""
    return after is not None and after.isascii() and after.isdecimal() and int(after) <= version


def _news(fields: Hash) -> _News:
    return _News(int(fields["version"]), state_of(fields), int(fields.get("batches", 0)))


def _unpacked(entry: bytes) -> Hash:
    parts = orjson.loads(entry)
    return {name: str(value).encode() for name, value in zip(parts[::2], parts[1::2], strict=True)}


def _decoded(fields: dict[bytes, bytes]) -> Hash:
    return {name.decode(errors="replace"): value for name, value in fields.items()}
