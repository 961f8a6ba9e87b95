"""Watching the jobs of a `MemoryJobStore`."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from services.contracts.errors import ErrorCode, NotFound
from services.jobs.memory.store import MemoryJobStore
from services.jobs.record import JobEvent
from services.jobs.token_news import joined

LOOKS_EVERY_S = 0.002


class MemoryEvents:
    def __init__(self, store: MemoryJobStore) -> None:
        self._store = store

    async def watch(self, job_id: str, after: str | None = None) -> AsyncGenerator[JobEvent, None]:
        events = self._store.events.get(job_id)
        if self._store.get(job_id) is None or not events:
            raise NotFound(ErrorCode.JOB_NOT_FOUND, f"there is no job {job_id}")
        latest = int(events[-1].id)
        resumes = after is not None and after.isdecimal() and int(after) <= latest
        seen = int(after or 0) if resumes else latest - 1
        ended = seen == latest and events[-1].summary.status.terminal
        followed = resumes and any(int(event.id) == seen for event in events)
        while not ended:
            for event in [event for event in events if int(event.id) > seen]:
                seen, ended = int(event.id), event.summary.status.terminal
                tokens = joined(event.tokens if followed else self._store.tokens.get(job_id, ()))
                followed = True
                yield replace(event, tokens=tokens if job_id in self._store.tokens else ())
            await asyncio.sleep(LOOKS_EVERY_S)
