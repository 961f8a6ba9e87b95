"""Lines of a batch that the result cache answers, on the fakes and the real stores."""

from collections.abc import Iterator

import pytest

from services.adapters.redis_cache import RedisResultCache
from services.adapters.redis_client import make_client
from services.batches.record import Phase
from services.jobs.cache import ResultCache
from services.jobs.memory import MemoryJobStore, MemoryResultCache
from services.jobs.record import JobRecord, NewJob, StoredResult, Succeeded
from tests.services.batches.bench import BatchBench, memory_batches, valkey_batches
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import new_job

ENTRY = "question:made-so"
RESULT = StoredResult(document='{"kind":"features"}')

Stores = tuple[BatchBench, ResultCache]


@pytest.fixture(params=["memory", "valkey"])
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    if request.param == "memory":
        bench = memory_batches()
        assert isinstance(bench.jobs.store, MemoryJobStore)
        yield bench, MemoryResultCache(bench.jobs.store, POLICY)
        return
    with make_client(request.getfixturevalue("redis_url"), patient=False) as client:
        yield valkey_batches(client), RedisResultCache(client, POLICY)


def asking(job: NewJob) -> NewJob:
    return job.model_copy(update={"ties": job.ties.model_copy(update={"cache_entry": ENTRY})})


def remembered(bench: BatchBench) -> JobRecord:
    """A single job whose result answers from now on."""
    bench.jobs.store.create(asking(new_job()))
    claim = bench.jobs.claim()
    assert bench.jobs.store.finish(claim, Succeeded(RESULT, "made-so"))
    return bench.jobs.record(claim.job.id)


def answered(results: ResultCache, job: NewJob) -> JobRecord | None:
    source = results.find(asking(job))
    return None if source is None else results.answer(asking(job), source, RESULT)


def test_a_line_that_is_answered_at_once_counts_in_its_batch_and_ends_it(stores: Stores) -> None:
    bench, results = stores
    remembered(bench)
    batch_id = bench.running(lines=2)
    for index in range(2):
        record = answered(results, bench.job(batch_id, index))
        assert record is not None
        assert record.cached
        assert bench.batch(batch_id).succeeded == index + 1
        assert bench.submit(batch_id, index).id == record.id
    batch = bench.batch(batch_id)
    assert (batch.phase, batch.succeeded, batch.living) == (Phase.ENDED, 2, 0)
    assert bench.jobs.store.depth("default") == 0


def test_a_batch_that_does_not_run_takes_no_answers_either(stores: Stores) -> None:
    bench, results = stores
    remembered(bench)
    batch_id = bench.running(lines=2)
    job = bench.job(batch_id, 1)
    source = results.find(asking(job))
    assert source is not None
    bench.batches.cancel(batch_id)
    assert results.answer(asking(job), source, RESULT) is None
    assert bench.jobs.store.get(job.id) is None
    assert bench.batch(batch_id).cancelled == 2


def test_a_line_whose_job_was_deleted_is_not_answered_again(stores: Stores) -> None:
    bench, results = stores
    remembered(bench)
    batch_id = bench.running(lines=2)
    record = answered(results, bench.job(batch_id, 0))
    assert record is not None
    bench.jobs.store.delete(record.id)
    assert answered(results, bench.job(batch_id, 0)) is None
    assert bench.jobs.store.get(record.id) is None
    assert bench.batch(batch_id).succeeded == 1
