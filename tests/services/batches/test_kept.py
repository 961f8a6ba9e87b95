"""Batches of an owner who may keep no more: they wait, on the fakes and the real stores."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from services.adapters.redis_client import make_client
from services.batches.record import Checked, Phase
from services.contracts.errors import ErrorCode, Limited
from services.contracts.job import JobStatus
from services.jobs.ids import new_blob_key
from services.jobs.record import Size
from tests.services.batches.bench import MANY, BatchBench, memory_batches, new_batch, stored_lines, valkey_batches
from tests.services.batches.test_keeper import Stand
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import DONE

FEW = replace(POLICY, max_kept=4, max_kept_batches=3)


@pytest.fixture(params=["memory", "valkey"])
def few(request: pytest.FixtureRequest) -> Iterator[BatchBench]:
    if request.param == "memory":
        yield memory_batches(FEW)
        return
    with make_client(request.getfixturevalue("redis_url"), patient=False) as client:
        yield valkey_batches(client, FEW)


def work_off(stand: Stand, turns: int = 5) -> None:
    """Some turns of the keeper, each after the longest pause, and all jobs that come of it."""
    for _ in range(turns):
        stand.keeper.turn()
        while claim := stand.bench.jobs.store.claim("default", "w1", tuple(Size)):
            stand.bench.jobs.store.finish(claim, DONE)
        stand.bench.jobs.advance(15)


def test_a_batch_waits_for_room_and_no_line_of_it_fails(few: BatchBench) -> None:
    stand = Stand(few)
    single = few.jobs.submit()
    batch_id = stand.upload([f"line-{index}" for index in range(6)])
    other = stand.upload(["line-0", "line-1"], owner="bob")
    work_off(stand, turns=12)
    batch = few.batch(batch_id)
    assert (batch.phase, batch.succeeded, batch.failed, batch.fed) == (Phase.RUNNING, FEW.max_kept - 1, 0, 3)
    assert few.batch(other).phase is Phase.ENDED
    few.jobs.store.delete(single)
    work_off(stand)
    assert few.batch(batch_id).succeeded == FEW.max_kept


def test_a_batch_that_waits_among_its_own_results_goes_on_when_they_are_as_old_as_results_get(few: BatchBench) -> None:
    stand = Stand(few)
    batch_id = stand.upload([f"line-{index}" for index in range(6)])
    work_off(stand)
    assert few.batch(batch_id).succeeded == FEW.max_kept
    few.jobs.advance(FEW.retention_s)
    few.jobs.store.reap()
    work_off(stand)
    batch = few.batch(batch_id)
    assert (batch.phase, batch.succeeded) == (Phase.ENDED, 6)
    gone = few.batches.deleted(batch_id, stand.intake.submitted)
    assert set(gone.values()) == {JobStatus.SUCCEEDED}
    assert 0 < len(gone) < 6


def test_no_batch_is_taken_of_an_owner_who_may_keep_no_more_jobs(few: BatchBench) -> None:
    for _ in range(FEW.max_kept):
        few.jobs.submit()
    with pytest.raises(Limited) as refused:
        few.batches.create(new_batch(), MANY)
    assert refused.value.code is ErrorCode.TOO_MANY_JOBS
    few.batches.create(new_batch("bob"), MANY)


def test_an_owner_keeps_only_so_many_batches(few: BatchBench) -> None:
    kept = [few.upload() for _ in range(FEW.max_kept_batches)]
    with pytest.raises(Limited) as refused:
        few.batches.create(new_batch(), MANY)
    assert refused.value.code is ErrorCode.TOO_MANY_BATCHES
    assert "kept" in refused.value.message
    few.batches.create(new_batch("bob"), MANY)
    few.batches.forget(kept[0])
    few.batches.create(new_batch(), MANY)


def test_the_lines_of_a_batch_take_of_its_owners_share_until_it_is_forgotten(redis_url: str) -> None:
    with make_client(redis_url, patient=False) as client:
        bench, new = valkey_batches(client), new_batch(lines=2)
        bench.batches.create(new, MANY)
        bench.batches.open(new.id, new_blob_key(new.id, 0))
        lines = stored_lines(2, wrong=[0, 1])
        bench.batches.check(bench.turn(), Checked(lines, offset=20, number=2, cost=0))
        assert int(cast("bytes", client.get("lensd:kept-bytes:ada"))) >= sum(
            len(line.model_dump_json()) // 2 for line in lines
        )
        bench.batches.forget(new.id)
        assert client.get("lensd:kept-bytes:ada") is None
