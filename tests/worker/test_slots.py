"""How a worker's slots are shared between small and large jobs."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import count, islice
from threading import Barrier, Event

import pytest

from services.jobs.record import Claim, Size
from tests.services.jobs.bench import memory_bench
from worker.slots import Slots

LARGE_FIRST = (Size.LARGE, Size.SMALL)
SMALL_FIRST = (Size.SMALL, Size.LARGE)
SMALL_ONLY = (Size.SMALL,)


class Worker:
    """Slots over a store, one after another; what each claim asked for is kept."""

    def __init__(self, large_slots: int, slots: int = 1_000) -> None:
        self.bench = memory_bench()
        self.owners = count(1)
        self.asked: list[Sequence[Size]] = []
        self.slots = Slots(slots, large_slots)

    def claim(self, sizes: Sequence[Size], without: Mapping[Size, Collection[str]]) -> Claim | None:
        self.asked.append(sizes)
        return self.bench.store.claim("default", "w1", sizes, without)

    def submit(self, small: int = 0, large: int = 0) -> None:
        for size, jobs in ((Size.SMALL, small), (Size.LARGE, large)):
            for _ in range(jobs):
                self.bench.submit(owner=f"owner-{next(self.owners)}", size=size)

    def submit_for(self, owner: str, size: Size) -> None:
        self.bench.submit(owner=owner, size=size)

    def start(self, running: ExitStack) -> Size | None:
        """One more slot takes a job, which runs until the stack is closed."""
        claim = running.enter_context(self.slots.next_job(self.claim))
        return None if claim is None else claim.size


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_large_jobs_go_first_until_half_of_their_slots_are_taken_and_last_from_then_on(running: ExitStack) -> None:
    worker = Worker(large_slots=4)
    worker.submit(large=9)
    for _ in range(5):
        worker.start(running)
    assert worker.asked == [LARGE_FIRST, LARGE_FIRST, SMALL_FIRST, SMALL_FIRST, SMALL_ONLY]


def test_neither_kind_waits_for_the_other_to_run_out(running: ExitStack) -> None:
    worker = Worker(large_slots=4)
    worker.submit(small=9, large=9)
    assert [worker.start(running) for _ in range(5)] == [Size.LARGE, Size.LARGE, Size.SMALL, Size.SMALL, Size.SMALL]


def test_large_jobs_without_end_leave_the_other_slots_to_small_ones(running: ExitStack) -> None:
    worker = Worker(large_slots=3)
    worker.submit(large=9)
    assert [worker.start(running) for _ in range(4)] == [Size.LARGE, Size.LARGE, Size.LARGE, None]
    worker.submit(small=1)
    assert worker.start(running) is Size.SMALL


def test_a_large_jobs_end_makes_room_for_the_next(running: ExitStack) -> None:
    worker = Worker(large_slots=1)
    worker.submit(large=2)
    with ExitStack() as first:
        assert worker.start(first) is Size.LARGE
        assert worker.start(running) is None
    assert worker.start(running) is Size.LARGE


def test_a_job_that_raises_makes_room_too(running: ExitStack) -> None:
    worker = Worker(large_slots=1)
    worker.submit(large=2)
    with pytest.raises(RuntimeError), worker.slots.next_job(worker.claim):
        raise RuntimeError
    assert worker.start(running) is Size.LARGE


def test_a_claim_that_raises_takes_no_room(running: ExitStack) -> None:
    def claim(_: Sequence[Size], __: Mapping[Size, Collection[str]]) -> Claim | None:
        raise RuntimeError

    worker = Worker(large_slots=1)
    worker.submit(large=1)
    with pytest.raises(RuntimeError), worker.slots.next_job(claim):
        pass
    assert worker.start(running) is Size.LARGE


def test_slots_that_wake_together_take_no_more_large_jobs_than_they_may() -> None:
    worker = Worker(large_slots=3)
    worker.submit(large=8)
    together, enough = Barrier(8), Event()

    def slow_claim(sizes: Sequence[Size], without: Mapping[Size, Collection[str]]) -> Claim | None:
        time.sleep(0.01)
        return worker.claim(sizes, without)

    def slot() -> Claim | None:
        together.wait(5)
        with worker.slots.next_job(slow_claim) as claim:
            if claim is not None:
                enough.wait(5)
            return claim

    with ThreadPoolExecutor(8) as threads:
        waking = [threads.submit(slot) for _ in range(8)]
        turned_away = islice(as_completed(waking, timeout=5), 5)
        assert [each.result() for each in turned_away] == [None] * 5
        enough.set()
        assert sum(each.result() is not None for each in waking) == 3


def test_a_slot_that_goes_to_sleep_leaves_no_large_job_behind() -> None:
    """Slots claim until nothing is left for them, as a worker's do: one that is turned away relies on the others."""
    worker = Worker(large_slots=2)
    worker.submit(small=20, large=20)

    def slot(_: int) -> None:
        while True:
            with worker.slots.next_job(worker.claim) as claim:
                if claim is None:
                    return

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(slot, range(6)))
    assert worker.bench.store.depth("default") == 0


@pytest.mark.parametrize("size", Size)
def test_one_owner_never_holds_every_slot(running: ExitStack, size: Size) -> None:
    worker = Worker(slots=16, large_slots=8)
    for _ in range(20):
        worker.submit_for("ada", size)
    started = [worker.start(running) for _ in range(16)]
    assert sum(each is not None for each in started) == {Size.SMALL: 14, Size.LARGE: 7}[size]
    worker.submit_for("bob", size)
    assert worker.start(running) is size


def test_an_owner_whose_large_slots_are_taken_still_runs_small_jobs(running: ExitStack) -> None:
    worker = Worker(slots=16, large_slots=4)
    for size in (Size.LARGE,) * 9 + (Size.SMALL,) * 2:
        worker.submit_for("ada", size)
    started = [worker.start(running) for _ in range(6)]
    assert started.count(Size.LARGE) == 3
    assert started.count(Size.SMALL) == 2


def test_where_there_is_one_slot_it_is_anyones(running: ExitStack) -> None:
    worker = Worker(slots=1, large_slots=1)
    worker.submit_for("ada", Size.LARGE)
    assert worker.start(running) is Size.LARGE
