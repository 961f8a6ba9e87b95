"""What keepers make of batches, on the fake and the real stores: turn by turn, without threads or a clock."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from services.batches.feeding import BYTES_AT_ONCE, LONGEST_PAUSE_S, WHEN_FULL_S
from services.batches.ids import job_id_of
from services.batches.intake import ReadLine
from services.batches.keeper import Keeper
from services.batches.pace import LINES_AT_ONCE, Pace
from services.batches.record import Batch, Phase, TurnLost
from services.batches.store import ABANDONED_S, LEASE_S
from services.batches.upload import count_lines
from services.batches.work import BatchWork
from services.contracts.batch import MAX_LINES, OnInvalid
from services.contracts.errors import ErrorCode, Limited, Unavailable
from services.contracts.job import JobStatus
from services.jobs.ids import new_blob_key
from services.jobs.memory import MemoryBlobs
from services.jobs.record import NewJob
from services.tenants.keys import ApiKey
from tests.services.batches.bench import FAULT, MANY, BatchBench, new_batch
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import DONE, new_job

WINDOW = 10


@dataclass
class FakeIntake:
    """Lines are custom ids: `bad` ones are wrong, `!` ones break it; submits to the store until it is told not to."""

    bench: BatchBench
    daily: int | None = None
    refuses: Unavailable | None = None
    withdrawn: bool = False
    away: bool = False
    submitted: list[str] = field(default_factory=list)

    def read(self, line: bytes, key: ApiKey) -> ReadLine:
        if self.away:
            raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "away")
        name = line.decode().strip()
        if name.startswith("!"):
            raise ZeroDivisionError("lensd's own fault")
        if name.startswith("bad") or self.withdrawn:
            return ReadLine(name, fault=FAULT)
        return ReadLine(name.split(" ")[0], new_job(key.owner, cost=10))

    def submit(self, job: NewJob) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.bench.jobs.store.create(job)
        self.submitted.append(job.id)

    def daily_token_layers(self, key: ApiKey) -> int | None:
        del key
        return self.daily


class Stand:
    def __init__(self, bench: BatchBench) -> None:
        self.bench = bench
        self.blobs = MemoryBlobs()
        self.intake = FakeIntake(bench)
        self.work = BatchWork(bench.batches, self.blobs, self.intake, WINDOW)
        self.keeper = Keeper(bench.batches, self.work, rest=0)

    def upload(self, lines: Sequence[str], owner: str = "ada", on_invalid: OnInvalid = "refuse") -> str:
        text = "\n".join(lines).encode()
        batch = new_batch(owner, count_lines(text), on_invalid)
        self.bench.batches.create(batch, MANY)
        blob = new_blob_key(batch.id, 0)
        self.blobs.put(blob, text)
        self.bench.batches.open(batch.id, blob)
        return batch.id

    def keep(self, turns: int = 1_000) -> None:
        """Turns until nothing is due."""
        for _ in range(turns):
            if not self.keeper.turn():
                return

    def until(self, batch_id: str, holds: Callable[[Batch], bool]) -> Batch:
        """Turns, as time passes, until the batch is as it should be."""
        for _ in range(1_000):
            batch = self.bench.batch(batch_id)
            if holds(batch):
                return batch
            if not self.keeper.turn():
                self.bench.jobs.advance(1)
        raise AssertionError(batch)

    def run_jobs(self) -> list[str]:
        done = []
        while (claim := self.bench.jobs.store.claim("default", "w1", ("small", "large"))) is not None:  # type: ignore[arg-type]
            assert self.bench.jobs.store.finish(claim, DONE)
            done.append(claim.job.id)
        return done


@pytest.fixture
def stand(bench: BatchBench) -> Stand:
    return Stand(bench)


def test_lines_become_jobs_in_their_order_with_the_priority_of_batches(stand: Stand) -> None:
    batch_id = stand.upload(["a", "", "b", "c"])
    stand.keep()
    batch = stand.bench.batch(batch_id)
    assert (batch.phase, batch.checked, batch.fed, batch.living, batch.cost) == (Phase.RUNNING, 3, 3, 3, 30)
    assert stand.intake.submitted == [job_id_of(batch_id, index) for index in range(3)]
    assert {stand.bench.jobs.record(job_id).priority for job_id in stand.intake.submitted} == {"batch"}
    assert stand.run_jobs() == stand.intake.submitted
    assert stand.bench.batch(batch_id).phase is Phase.ENDED
    lines = stand.bench.batches.lines(batch_id, 0, 10)
    assert [(line.number, line.custom_id) for line in lines] == [(1, "a"), (3, "b"), (4, "c")]


def test_no_line_runs_before_all_are_validated(stand: Stand) -> None:
    lines = 3 * LINES_AT_ONCE
    batch_id = stand.upload([f"line-{index}" for index in range(lines)])
    while stand.bench.batch(batch_id).checked < lines:
        assert stand.bench.jobs.store.depth("default") == 0
        assert stand.keeper.turn()
    stand.keep()
    assert stand.bench.jobs.store.depth("default") == WINDOW


def test_a_wrong_line_fails_the_whole_batch_after_all_were_read(stand: Stand) -> None:
    batch_id = stand.upload(["a", "bad-1", *(f"line-{index}" for index in range(LINES_AT_ONCE)), "bad-2"])
    stand.keep()
    batch = stand.bench.batch(batch_id)
    assert (batch.phase, batch.invalid, batch.checked) == (Phase.FAILED, 2, LINES_AT_ONCE + 3)
    assert batch.error is not None
    assert batch.error.code is ErrorCode.INVALID_LINES
    assert "2 of 103 lines are wrong" in batch.error.message
    assert [(line.number, line.custom_id) for line in batch.wrong] == [(2, "bad-1"), (103, "bad-2")]
    assert not stand.intake.submitted


def test_by_choice_wrong_lines_are_reported_and_the_others_run(stand: Stand) -> None:
    batch_id = stand.upload(["a", "bad", "b"], on_invalid="report")
    stand.keep()
    stand.run_jobs()
    batch = stand.bench.batch(batch_id)
    assert (batch.phase, batch.invalid, batch.succeeded) == (Phase.ENDED, 1, 2)


def test_a_batch_of_wrong_lines_alone_fails(stand: Stand) -> None:
    batch_id = stand.upload(["bad", "bad-2"], on_invalid="report")
    stand.keep()
    assert stand.bench.batch(batch_id).phase is Phase.FAILED


def test_a_custom_id_that_comes_twice_is_wrong_the_second_time(stand: Stand) -> None:
    names = ["a", "b", "a", *(f"line-{index}" for index in range(LINES_AT_ONCE)), "b"]
    batch_id = stand.upload(names, on_invalid="report")
    stand.keep()
    batch = stand.bench.batch(batch_id)
    assert [line.number for line in batch.wrong] == [3, len(names)]
    assert [line.fault and (line.fault.pointer, line.fault.message) for line in batch.wrong] == [
        ("/custom_id", "the custom_id 'a' is that of line 1 already"),
        ("/custom_id", "the custom_id 'b' is that of line 2 already"),
    ]


def test_a_line_that_lensd_cannot_cope_with_is_wrong_and_holds_nothing_up(stand: Stand) -> None:
    batch_id = stand.upload(["a", "!"], on_invalid="report")
    stand.keep()
    stand.run_jobs()
    batch = stand.bench.batch(batch_id)
    assert (batch.phase, batch.succeeded) == (Phase.ENDED, 1)
    assert batch.wrong[0].fault is not None
    assert batch.wrong[0].fault.code is ErrorCode.INTERNAL


def test_only_so_many_jobs_of_a_batch_are_in_the_queue(stand: Stand) -> None:
    batch_id = stand.upload([f"line-{index}" for index in range(35)])
    stand.keep()
    ran: list[str] = []
    while not (batch := stand.bench.batch(batch_id)).phase.terminal:
        assert batch.living <= WINDOW
        ran += stand.run_jobs()
        stand.bench.jobs.advance(WHEN_FULL_S)
        stand.keep()
    assert ran == [job_id_of(batch_id, index) for index in range(35)]


@pytest.mark.parametrize(
    "refusal",
    [
        Limited(ErrorCode.TOO_MANY_JOBS, "too many", 5),
        Limited(ErrorCode.QUOTA_EXCEEDED, "tomorrow", 80_000),
        Unavailable(ErrorCode.QUEUE_FULL, "full"),
        Unavailable(ErrorCode.STORE_UNAVAILABLE, "away"),
    ],
)
def test_a_line_for_which_there_is_no_room_waits_and_never_fails(stand: Stand, refusal: Unavailable) -> None:
    batch_id = stand.upload(["a", "b"])
    stand.intake.refuses = refusal
    stand.keep()
    assert (stand.bench.batch(batch_id).phase, stand.bench.batch(batch_id).fed) == (Phase.RUNNING, 0)
    stand.intake.refuses = None
    stand.keep()
    assert not stand.intake.submitted
    stand.bench.jobs.advance(LONGEST_PAUSE_S)
    stand.keep()
    stand.run_jobs()
    assert (stand.bench.batch(batch_id).succeeded, stand.bench.batch(batch_id).failed) == (2, 0)


def test_a_line_that_cannot_be_checked_now_is_checked_later(stand: Stand) -> None:
    batch_id = stand.upload([f"line-{index}" for index in range(WINDOW + 1)])
    stand.intake.away = True
    with pytest.raises(Unavailable):
        stand.keep()
    assert stand.bench.batch(batch_id).checked == 0
    stand.intake.away = False
    stand.bench.jobs.advance(LEASE_S + 1)
    stand.keep()
    stand.run_jobs()
    stand.intake.away = True
    stand.bench.jobs.advance(WHEN_FULL_S)
    stand.keep()
    assert (stand.bench.batch(batch_id).fed, stand.bench.batch(batch_id).invalid) == (WINDOW, 0)
    stand.intake.away = False
    stand.bench.jobs.advance(LONGEST_PAUSE_S)
    stand.keep()
    stand.run_jobs()
    assert stand.bench.batch(batch_id).succeeded == WINDOW + 1


def test_a_batch_over_what_is_left_of_the_day_fails_and_names_the_estimate(stand: Stand) -> None:
    stand.intake.daily = 29
    batch_id = stand.upload(["a", "b", "c"])
    stand.keep()
    batch = stand.bench.batch(batch_id)
    assert batch.phase is Phase.FAILED
    assert batch.error is not None
    assert batch.error.code is ErrorCode.QUOTA_EXCEEDED
    assert "estimated at 30" in batch.error.message


def test_a_line_that_turns_out_wrong_later_is_reported_and_the_others_run(stand: Stand) -> None:
    batch_id = stand.upload([f"line-{index}" for index in range(WINDOW + 2)])
    stand.keep()
    stand.run_jobs()
    stand.intake.withdrawn = True
    batch = stand.until(batch_id, lambda batch: batch.phase.terminal)
    assert (batch.succeeded, batch.invalid, batch.phase) == (WINDOW, 2, Phase.ENDED)


def test_a_batch_whose_upload_is_lost_says_so(stand: Stand) -> None:
    validating = stand.upload(["a"])
    stand.blobs.by_key.clear()
    stand.keep()
    running = stand.upload([f"line-{index}" for index in range(WINDOW + 1)])
    stand.keep()
    stand.blobs.by_key.clear()
    stand.run_jobs()
    ended = stand.until(running, lambda batch: batch.phase.terminal)
    failed = stand.bench.batch(validating)
    assert (failed.phase, ended.phase) == (Phase.FAILED, Phase.ENDED)
    assert (ended.succeeded, ended.cancelled) == (WINDOW, 1)
    for batch in (failed, ended):
        assert batch.error is not None
        assert batch.error.code is ErrorCode.UPLOAD_LOST


def test_an_upload_that_was_cut_off_is_lost(stand: Stand) -> None:
    batch_id = stand.upload(["a", "b"])
    (key,) = stand.blobs.by_key
    stand.blobs.by_key[key] = b"a\n"
    stand.keep()
    batch = stand.bench.batch(batch_id)
    assert batch.error is not None
    assert (batch.phase, batch.error.code) == (Phase.FAILED, ErrorCode.UPLOAD_LOST)


def test_a_large_upload_is_fed_in_reads_of_a_bounded_size(stand: Stand) -> None:
    lines = [f"line-{index} " + "x" * (BYTES_AT_ONCE // 3) for index in range(7)]
    batch_id = stand.upload(lines)
    stand.keep()
    stand.run_jobs()
    assert stand.bench.batch(batch_id).succeeded == 7


def test_the_batches_of_all_owners_take_turns(stand: Stand) -> None:
    large = stand.upload([f"line-{index}" for index in range(20 * LINES_AT_ONCE)])
    small = stand.upload(["a"], owner="bob")
    for _ in range(6):
        stand.keeper.turn()
    assert stand.bench.batch(small).fed == 1
    assert stand.bench.batch(large).checked == 3 * LINES_AT_ONCE


@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_ten_thousand_lines_of_one_owner_let_anothers_single_job_pass(bench: BatchBench, priority: str) -> None:
    """Whoever claims next, at whatever moment, has it: at once, or after one job of the batch if it is no hurry."""
    stand = Stand(bench)
    batch_id = stand.upload([f"line-{index}" for index in range(MAX_LINES)])
    for _ in range(3):
        stand.until(batch_id, lambda batch: batch.living == WINDOW)
        single = bench.jobs.submit("bob", priority=priority)
        claims = [bench.jobs.claim() for _ in range(2)]
        assert single in [claim.job.id for claim in claims][: 1 if priority == "interactive" else 2]
        for claim in claims:
            assert bench.jobs.store.finish(claim, DONE)


def test_a_cancelled_batch_ends_and_its_upload_goes(stand: Stand) -> None:
    batch_id = stand.upload([f"line-{index}" for index in range(WINDOW + 5)])
    stand.keep()
    running = stand.bench.jobs.claim()
    stand.bench.batches.cancel(batch_id)
    stand.keep()
    assert stand.bench.batch(batch_id).living == 1
    assert stand.bench.jobs.record(running.job.id).cancel_requested
    stand.bench.jobs.store.finish(running, DONE)
    stand.keep()
    batch = stand.bench.batch(batch_id)
    assert (batch.phase, batch.succeeded, batch.cancelled) == (Phase.ENDED, 1, WINDOW + 4)
    assert not stand.blobs.by_key


def test_an_expired_batch_goes_with_its_jobs_and_their_blobs(stand: Stand) -> None:
    batch_id = stand.upload(["a", "b"])
    stand.keep()
    jobs = stand.run_jobs()
    for job_id in jobs:
        stand.blobs.put(new_blob_key(job_id, 1), b"tensors")
    stand.keep()
    assert sorted(stand.blobs.jobs()) == sorted(jobs)
    stand.bench.jobs.advance(POLICY.retention_s - 10)
    stand.keep()
    assert stand.bench.batch(batch_id).phase is Phase.ENDED
    stand.bench.jobs.advance(11)
    stand.keep()
    assert stand.bench.batches.get(batch_id) is None
    assert [stand.bench.jobs.store.get(job_id) for job_id in jobs] == [None, None]
    assert not stand.blobs.by_key


def test_an_abandoned_upload_is_cleared_away(stand: Stand) -> None:
    batch = new_batch()
    stand.bench.batches.create(batch, MANY)
    stand.blobs.put(new_blob_key(batch.id, 0), b"a")
    stand.bench.jobs.advance(ABANDONED_S + 1)
    stand.keep()
    assert (stand.bench.batches.get(batch.id), stand.blobs.by_key) == (None, {})


@pytest.mark.parametrize("phase", ["validating", "feeding", "cancelling"])
def test_a_keeper_that_dies_in_the_middle_of_its_work_is_made_up_for(stand: Stand, phase: str) -> None:
    """It does all but the last word of every other piece, as if it were killed just before that."""
    lines = 2 * LINES_AT_ONCE + 7
    batch_id = stand.upload([f"line-{index}" for index in range(lines)])
    if phase != "validating":
        stand.keep()
    if phase == "cancelling":
        stand.bench.batches.cancel(batch_id)
    for _ in range(1_000):
        stand.run_jobs()
        turn = stand.bench.batches.take()
        if turn is not None:
            stand.bench.jobs.advance(LEASE_S + 1)
            latest = stand.bench.turn()
            with suppress(TurnLost):
                stand.work.do(turn, Pace())
            stand.bench.batches.put_back(latest, stand.work.do(latest, Pace()))
        if stand.bench.batch(batch_id).phase.terminal:
            break
        stand.bench.jobs.advance(1)
    batch = stand.bench.batch(batch_id)
    assert (batch.phase, batch.checked) == (Phase.ENDED, lines)
    assert batch.succeeded + batch.cancelled == lines
    assert (batch.cancelled > 0) == (phase == "cancelling")
    made = {job_id_of(batch_id, index) for index in range(lines)}
    assert set(stand.intake.submitted) <= made
    ended = [stand.bench.jobs.store.get(job_id) for job_id in made]
    assert sum(record is not None and record.status is JobStatus.SUCCEEDED for record in ended) == batch.succeeded
