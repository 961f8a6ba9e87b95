"""The result cache in one process."""

from services.contracts.errors import Limited
from services.contracts.job import JobStatus
from services.jobs.memory.store import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.ports import JobFilter
from services.jobs.record import Idempotency, JobRecord, NewJob, StoredResult


class MemoryResultCache:
    """Implements `services.jobs.cache.ResultCache` for jobs of `store`."""

    def __init__(self, store: MemoryJobStore, policy: JobPolicy) -> None:
        self._store = store
        self._max_answers = policy.max_answers
        self._sources: dict[str, str] = {}
        store.on_end.append(self._remember)

    def find(self, job: NewJob, idempotency: Idempotency | None = None) -> JobRecord | None:
        if self._store.get(job.id) is not None or self._store.reservations.taken(job.owner, idempotency):
            return None
        source = self._store.get(self._sources.get(job.ties.cache_entry or "", ""))
        if source is None or self._answers(job.owner) >= self._max_answers:
            return None
        try:
            self._store.check_kept(job.owner)
        except Limited:
            return None
        self._store.arriving.add(job.id)
        return source

    def answer(
        self, job: NewJob, source: JobRecord, result: StoredResult, idempotency: Idempotency | None = None
    ) -> JobRecord | None:
        fresh = self._store.get(job.id) is None and not self._store.reservations.taken(job.owner, idempotency)
        leads_there = self._sources.get(job.ties.cache_entry or "") == source.id and self._store.get(source.id)
        if fresh and not (leads_there and job.id in self._store.arriving):
            return None
        if fresh and (self._store.batches.deleted(job) or not self._store.batches.takes(job)):
            return None
        return self._store.create_ended(job, source, result, idempotency)

    def _answers(self, owner: str) -> int:
        return sum(job.cached for job in self._store.list(owner, JobFilter(), None, 1_000_000).jobs)

    def _remember(self, job: NewJob, record: JobRecord) -> None:
        entry = job.ties.cache_entry
        computed = record.status is JobStatus.SUCCEEDED and not record.cached
        if entry and computed and entry.rpartition(":")[2] == record.fingerprint:
            self._sources[entry] = record.id
