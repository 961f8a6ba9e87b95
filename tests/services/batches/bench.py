"""A batch store beside a job store, both to be tested, with their clock in the test's hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from services.adapters.redis_batches import RedisBatchStore
from services.batches.ids import job_id_of
from services.batches.memory import MemoryBatchStore
from services.batches.record import Batch, Checked, NewBatch, StoredLine, Turn
from services.batches.store import BatchStore
from services.contracts.batch import LineFault, OnInvalid
from services.contracts.errors import ErrorCode
from services.jobs.ids import new_batch_id, new_blob_key
from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import JobRecord, NewJob, Ties
from services.tenants.keys import ApiKey, Scope, new_key
from tests.services.jobs.bench import POLICY, Bench, memory_bench, valkey_bench
from tests.services.jobs.samples import new_job

MANY = 100
FAULT = LineFault(code=ErrorCode.UNKNOWN_LAYER, message="layer 31 does not exist", pointer="/job/layers/0")


def key_of(owner: str) -> ApiKey:
    return new_key(owner, "test", tuple(Scope))[1].model_copy(update={"secret_sha256": ""})


def new_batch(owner: str = "ada", lines: int = 3, on_invalid: OnInvalid = "refuse") -> NewBatch:
    return NewBatch(id=new_batch_id(), key=key_of(owner), on_invalid=on_invalid, label="nightly", lines=lines)


def stored_lines(count: int, wrong: Sequence[int] = ()) -> tuple[StoredLine, ...]:
    return tuple(
        StoredLine(
            number=index + 1,
            offset=10 * index,
            nbytes=9,
            custom_id=f"line-{index}",
            fault=FAULT if index in wrong else None,
        )
        for index in range(count)
    )


@dataclass
class BatchBench:
    batches: BatchStore
    jobs: Bench

    def upload(self, owner: str = "ada", lines: int = 3, on_invalid: OnInvalid = "refuse") -> str:
        """A batch that waits to be validated."""
        batch = new_batch(owner, lines, on_invalid)
        self.batches.create(batch, MANY)
        self.batches.open(batch.id, new_blob_key(batch.id, 0))
        return batch.id

    def running(self, owner: str = "ada", lines: int = 3, wrong: Sequence[int] = ()) -> str:
        """A batch all of whose lines are validated, and that runs."""
        batch_id = self.upload(owner, lines, "report")
        turn = self.turn()
        self.batches.check(turn, Checked(stored_lines(lines, wrong), offset=10 * lines, number=lines, cost=60 * lines))
        self.batches.start(turn, None)
        self.batches.put_back(turn, 0)
        return batch_id

    def turn(self) -> Turn:
        turn = self.batches.take()
        assert turn is not None
        return turn

    def batch(self, batch_id: str) -> Batch:
        batch = self.batches.get(batch_id)
        assert batch is not None
        return batch

    def job(self, batch_id: str, index: int, owner: str = "ada") -> NewJob:
        """The job of a line, as a keeper makes it."""
        job = new_job(owner, priority="batch")
        return job.model_copy(update={"id": job_id_of(batch_id, index), "ties": Ties(batch=batch_id)})

    def submit(self, batch_id: str, index: int, owner: str = "ada") -> JobRecord:
        return self.jobs.store.create(self.job(batch_id, index, owner))


def memory_batches(policy: JobPolicy = POLICY) -> BatchBench:
    jobs = memory_bench(policy)
    assert isinstance(jobs.store, MemoryJobStore)
    return BatchBench(MemoryBatchStore(jobs.store, policy, jobs.store.clock), jobs)


def valkey_batches(client: Redis, policy: JobPolicy = POLICY) -> BatchBench:
    return BatchBench(RedisBatchStore(client, policy), valkey_bench(client, policy))
