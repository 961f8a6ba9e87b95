"""The keeper's thread: it goes on after trouble, and it ends."""

import threading

from services.batches.keeper import Keeper
from services.batches.memory import MemoryBatchStore
from services.batches.record import Turn
from services.contracts.errors import ErrorCode, Unavailable
from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from tests.processes import eventually
from tests.services.batches.bench import BatchBench, memory_batches
from tests.services.batches.test_keeper import Stand


class TroubledStore(MemoryBatchStore):
    """Does not answer at first; then something nobody thought of happens; then it is well."""

    troubles = 2

    def take(self) -> Turn | None:
        if self.troubles:
            self.troubles -= 1
            if self.troubles:
                raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "away")
            raise ZeroDivisionError
        return super().take()


def test_it_works_through_a_batch_by_itself_and_stops_when_it_is_told() -> None:
    stand = Stand(memory_batches())
    keeper = Keeper(stand.bench.batches, stand.work, rest=0.5)
    batch_id = stand.upload(["a", "b"])
    keeper.start()
    try:
        assert eventually(lambda: stand.bench.batch(batch_id).fed == 2)
    finally:
        keeper.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "keeper"]


def test_it_goes_on_after_an_outage_and_after_what_nobody_thought_of() -> None:
    jobs = memory_batches().jobs
    assert isinstance(jobs.store, MemoryJobStore)
    store = TroubledStore(jobs.store, JobPolicy(), jobs.store.clock)
    stand = Stand(BatchBench(store, jobs))
    batch_id = stand.upload(["a"])
    keeper = Keeper(store, stand.work, rest=0)
    keeper.start()
    try:
        assert eventually(lambda: stand.bench.batch(batch_id).fed == 1)
    finally:
        keeper.stop()
