"""The batch store beside the job store: the fakes and the real ones."""

import pytest

from services.batches.ids import job_id_of
from services.batches.record import Checked, Phase, StoredLine, TurnLost
from services.batches.store import ABANDONED_S, LEASE_S
from services.contracts.errors import Conflict, ErrorCode, Limited, Refused
from services.contracts.job import JobError, JobStatus
from services.jobs.ids import new_blob_key, new_job_id
from services.jobs.ports import JobFilter
from services.jobs.record import Cancelled, Ending, Failed, Idempotency
from tests.services.batches.bench import FAULT, MANY, BatchBench, new_batch, stored_lines
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import DONE

WRONG = JobError(code=ErrorCode.INVALID_LINES, message="1 of 3 lines are wrong")


def test_an_upload_becomes_a_batch_that_waits_to_be_validated(bench: BatchBench) -> None:
    new = new_batch()
    assert bench.batches.create(new, MANY).phase is Phase.UPLOADING
    assert bench.batches.list("ada", None, 10).batches == ()
    assert bench.batches.take() is None
    blob = new_blob_key(new.id, 0)
    opened = bench.batches.open(new.id, blob)
    assert opened is not None
    assert (opened.phase, opened.blob, opened.lines, opened.label) == (Phase.VALIDATING, blob, 3, "nightly")
    assert (opened.key, opened.owner) == (new.key, "ada")
    assert bench.batches.open(new.id, "another") == opened
    assert bench.batches.list("ada", None, 10).batches == (opened,)
    assert bench.turn().batch == opened


def test_an_upload_that_failed_is_abandoned_unless_it_was_opened_meanwhile(bench: BatchBench) -> None:
    new = new_batch()
    bench.batches.create(new, MANY)
    bench.batches.abandon(new.id)
    assert bench.batches.get(new.id) is None
    assert bench.batches.open(new.id, "blob") is None
    opened = bench.upload()
    bench.batches.abandon(opened)
    assert bench.batch(opened).phase is Phase.VALIDATING


def test_an_upload_that_never_came_to_its_end_falls_to_a_keeper(bench: BatchBench) -> None:
    new = new_batch()
    bench.batches.create(new, MANY)
    bench.jobs.advance(ABANDONED_S + 1)
    assert bench.turn().batch.phase is Phase.UPLOADING


def test_the_same_upload_under_the_same_key_finds_its_batch(bench: BatchBench) -> None:
    key = Idempotency("k1", "digest")
    first = bench.batches.create(new_batch(), MANY, key)
    again = bench.batches.create(new_batch(), 1, key)
    assert again.id == first.id
    with pytest.raises(Conflict) as refused:
        bench.batches.create(new_batch(), MANY, Idempotency("k1", "another"))
    assert refused.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    assert bench.batches.create(new_batch("bob"), MANY, key).id != first.id
    bench.batches.abandon(first.id)
    assert bench.batches.create(new_batch(), MANY, Idempotency("k1", "another")).id != first.id


def test_an_owner_has_only_so_many_unfinished_batches(bench: BatchBench) -> None:
    first = bench.upload()
    bench.batches.create(new_batch(), 2)
    with pytest.raises(Limited) as refused:
        bench.batches.create(new_batch(), 2)
    assert refused.value.code is ErrorCode.TOO_MANY_BATCHES
    bench.batches.create(new_batch("bob"), 2)
    bench.batches.cancel(first)
    bench.batches.create(new_batch(), 2)


def test_batches_are_listed_newest_first_page_by_page(bench: BatchBench) -> None:
    ids = [bench.upload() for _ in range(5)]
    bench.upload("bob")
    first = bench.batches.list("ada", None, 3)
    second = bench.batches.list("ada", first.cursor, 3)
    assert [batch.id for batch in first.batches + second.batches] == ids[::-1]
    assert (first.cursor is not None, second.cursor) == (True, None)
    with pytest.raises(Refused):
        bench.batches.list("ada", "!", 3)


def test_lines_are_noted_in_pieces_and_each_piece_once(bench: BatchBench) -> None:
    batch_id = bench.upload(lines=4)
    turn = bench.turn()
    lines = stored_lines(4, wrong=[1])
    for _ in range(2):
        bench.batches.check(turn, Checked(lines[:2], offset=20, number=2, cost=60))
    batch = bench.batch(batch_id)
    assert (batch.checked, batch.offset, batch.number, batch.cost, batch.invalid) == (2, 20, 2, 60, 1)
    assert batch.wrong == lines[1:2]
    bench.batches.put_back(turn, 0)
    bench.batches.check(bench.turn(), Checked(lines[2:], offset=40, number=4, cost=120))
    assert (bench.batch(batch_id).checked, bench.batch(batch_id).cost) == (4, 180)
    assert bench.batches.lines(batch_id, 0, 10) == lines
    assert bench.batches.lines(batch_id, 1, 2) == lines[1:3]
    assert bench.batches.lines(batch_id, 4, 1) == bench.batches.lines("batch_" + "a" * 26, 0, 5) == ()


def test_a_custom_id_belongs_to_the_first_line_that_has_it(bench: BatchBench) -> None:
    bench.upload()
    turn = bench.turn()
    assert bench.batches.name(turn, {"a": 1, "b": 2}) == {}
    assert bench.batches.name(turn, {"a": 1, "b": 2}) == {}
    assert bench.batches.name(turn, {"b": 3, "c": 4}) == {"b": 2}
    assert bench.batches.name(turn, {}) == {}


def test_a_batch_runs_once_and_ends_with_its_last_job(bench: BatchBench) -> None:
    batch_id = bench.running(lines=4, wrong=[3])
    started = bench.batch(batch_id)
    assert (started.phase, started.started_at is not None) == (Phase.RUNNING, True)
    for index in range(3):
        assert bench.submit(batch_id, index).priority == "batch"
    bench.jobs.submit("bob")
    assert len(bench.jobs.store.list("ada", JobFilter(batch=batch_id), None, 10).jobs) == 3
    assert bench.jobs.store.list("ada", JobFilter(batch="batch_" + "a" * 26), None, 10).jobs == ()
    assert bench.jobs.claim().job.owner == "bob"
    claims = [bench.jobs.claim() for _ in range(3)]
    assert (bench.batch(batch_id).living, bench.batch(batch_id).running) == (3, 3)
    endings: list[Ending] = [DONE, Failed(JobError(code=ErrorCode.METHOD_FAILED, message="no")), Cancelled()]
    for claim, ending in zip(claims, endings, strict=True):
        assert bench.batch(batch_id).phase is Phase.RUNNING
        for _ in range(2):
            assert bench.jobs.store.finish(claim, ending)
    ended = bench.batch(batch_id)
    assert (ended.phase, ended.invalid, ended.succeeded, ended.failed, ended.cancelled) == (Phase.ENDED, 1, 1, 1, 1)
    assert ended.finished_at is not None
    assert ended.expires_at is not None
    assert (ended.expires_at - ended.finished_at).total_seconds() == POLICY.retention_s


def test_a_deadline_and_a_lost_worker_are_counted_too(bench: BatchBench) -> None:
    batch_id = bench.running(lines=2)
    late = bench.job(batch_id, 0)
    bench.jobs.store.create(late.model_copy(update={"spec": late.spec.model_copy(update={"deadline_s": 5.0})}))
    bench.jobs.reap_after(10)
    assert bench.batch(batch_id).failed == 1
    bench.submit(batch_id, 1)
    for _ in range(POLICY.max_blamed):
        bench.jobs.store.executing("w1", [bench.jobs.claim()])
        bench.jobs.lose_worker()
    assert (bench.batch(batch_id).failed, bench.batch(batch_id).phase) == (2, Phase.ENDED)


def test_a_line_submitted_again_makes_no_second_job_even_when_the_first_was_deleted(bench: BatchBench) -> None:
    batch_id = bench.running(lines=2)
    first = bench.submit(batch_id, 0)
    assert bench.submit(batch_id, 0).id == first.id
    bench.jobs.store.finish(bench.jobs.claim(), DONE)
    assert bench.submit(batch_id, 0).id == first.id
    bench.jobs.store.delete(first.id)
    bench.submit(batch_id, 0)
    assert bench.jobs.store.get(first.id) is None
    assert bench.jobs.claimed() is None
    assert (bench.batch(batch_id).succeeded, bench.batch(batch_id).living) == (1, 0)
    assert bench.batches.deleted(batch_id, [first.id, new_job_id()]) == {first.id: JobStatus.SUCCEEDED}
    assert bench.batches.deleted(batch_id, []) == {}


def test_what_is_fed_is_noted_once_with_the_lines_that_turned_out_wrong(bench: BatchBench) -> None:
    batch_id = bench.running(lines=3)
    turn = bench.turn()
    bench.submit(batch_id, 0)
    wrong = {1: stored_lines(3, wrong=[1])[1]}
    for _ in range(2):
        bench.batches.feed(turn, 2, wrong)
    batch = bench.batch(batch_id)
    assert (batch.fed, batch.invalid, batch.wrong) == (2, 1, (wrong[1],))
    assert bench.batches.lines(batch_id, 1, 1) == (wrong[1],)
    bench.jobs.store.finish(bench.jobs.claim(), DONE)
    bench.batches.feed(turn, 3, {2: stored_lines(3, wrong=[2])[2]})
    assert (bench.batch(batch_id).phase, bench.batch(batch_id).invalid) == (Phase.ENDED, 2)


def test_a_batch_that_fails_runs_nothing(bench: BatchBench) -> None:
    batch_id = bench.upload(lines=3)
    turn = bench.turn()
    bench.batches.check(turn, Checked(stored_lines(3, wrong=[0]), offset=30, number=3, cost=1))
    for _ in range(2):
        bench.batches.fail(turn, WRONG)
    batch = bench.batch(batch_id)
    assert (batch.phase, batch.error, batch.invalid, batch.cancelled) == (Phase.FAILED, WRONG, 1, 2)
    assert batch.expires_at is not None
    with pytest.raises(Conflict):
        bench.submit(batch_id, 1)


def test_a_batch_over_what_is_left_of_the_day_does_not_start(bench: BatchBench) -> None:
    batch_id = bench.upload(lines=2)
    turn = bench.turn()
    bench.batches.check(turn, Checked(stored_lines(2), offset=20, number=2, cost=120))
    bench.jobs.submit()
    with pytest.raises(Limited) as refused:
        bench.batches.start(turn, 120 + 19_999)
    assert refused.value.code is ErrorCode.QUOTA_EXCEEDED
    assert all(figure in refused.value.message for figure in ("120", "20000", "20119")), refused.value.message
    assert bench.batch(batch_id).phase is Phase.VALIDATING
    for _ in range(2):
        bench.batches.start(turn, 120 + 20_000)
    assert bench.batch(batch_id).phase is Phase.RUNNING


def test_only_a_batch_that_runs_takes_jobs(bench: BatchBench) -> None:
    running, waiting, gone = bench.running("bob"), bench.upload(), new_batch().id
    for batch_id in (waiting, gone):
        with pytest.raises(Conflict) as refused:
            bench.submit(batch_id, 0)
        assert refused.value.code is ErrorCode.BATCH_CLOSED
    bench.submit(running, 0, "bob")
    bench.batches.cancel(running)
    with pytest.raises(Conflict):
        bench.submit(running, 1, "bob")
    assert bench.submit(running, 0, "bob").id == job_id_of(running, 0)


def test_cancelling_stops_feeding_and_ends_when_the_last_job_has(bench: BatchBench) -> None:
    batch_id = bench.running(lines=10, wrong=[9])
    for index in range(5):
        bench.submit(batch_id, index)
    bench.jobs.store.finish(bench.jobs.claim(), DONE)
    running = bench.jobs.claim()
    cancelled = bench.batches.cancel(batch_id)
    assert cancelled is not None
    assert (cancelled.phase, cancelled.living) == (Phase.CANCELLING, 4)
    turn = bench.turn()
    bench.batches.cancel_jobs(turn, 2)
    assert (bench.batch(batch_id).living, bench.batch(batch_id).phase) == (2, Phase.CANCELLING)
    bench.batches.cancel_jobs(turn, 2)
    assert bench.batch(batch_id).living == 1
    assert bench.jobs.record(running.job.id).cancel_requested
    assert bench.jobs.store.finish(running, Cancelled())
    ended = bench.batch(batch_id)
    assert (ended.phase, ended.invalid, ended.succeeded, ended.cancelled) == (Phase.ENDED, 1, 1, 8)
    assert bench.batches.cancel(batch_id) == ended


def test_a_batch_without_living_jobs_is_cancelled_at_once(bench: BatchBench) -> None:
    for batch_id in (bench.running(), bench.upload()):
        bench.batches.cancel(batch_id)
        batch = bench.batch(batch_id)
        assert (batch.phase, batch.cancelled) == (Phase.ENDED, 3)
    assert bench.batches.cancel("batch_" + "a" * 26) is None


def test_a_batch_that_cannot_go_on_says_why(bench: BatchBench) -> None:
    batch_id = bench.running()
    bench.batches.stop(bench.turn(), WRONG)
    assert (bench.batch(batch_id).phase, bench.batch(batch_id).error) == (Phase.ENDED, WRONG)


def test_batches_take_turns_and_wait_as_long_as_their_keeper_says(bench: BatchBench) -> None:
    first, second = bench.upload(), bench.upload()
    turns = [bench.turn(), bench.turn()]
    assert [turn.batch.id for turn in turns] == [first, second]
    assert bench.batches.take() is None
    bench.batches.put_back(turns[0], 5)
    bench.batches.put_back(turns[1], 0)
    assert bench.turn().batch.id == second
    assert bench.batches.take() is None
    bench.jobs.advance(6)
    assert bench.turn().batch.id == first


def test_something_that_happens_during_a_turn_makes_the_next_one_due_at_once(bench: BatchBench) -> None:
    batch_id = bench.running()
    bench.submit(batch_id, 0)
    turn = bench.turn()
    bench.batches.cancel(batch_id)
    bench.batches.put_back(turn, 3_600)
    assert bench.turn().batch.phase is Phase.CANCELLING


def test_what_a_keeper_says_after_another_took_its_turn_is_refused(bench: BatchBench) -> None:
    batch_id = bench.upload(lines=1)
    late = bench.turn()
    bench.jobs.advance(LEASE_S + 1)
    latest = bench.turn()
    checked = Checked(stored_lines(1), offset=10, number=1, cost=60)
    for late_word in (
        lambda: bench.batches.check(late, checked),
        lambda: bench.batches.name(late, {"a": 1}),
        lambda: bench.batches.start(late, None),
        lambda: bench.batches.fail(late, WRONG),
        lambda: bench.batches.feed(late, 1, {}),
        lambda: bench.batches.stop(late, WRONG),
        lambda: bench.batches.cancel_jobs(late, 1),
    ):
        with pytest.raises(TurnLost):
            late_word()
    bench.batches.put_back(late, 0)
    assert bench.batches.take() is None
    bench.batches.check(latest, checked)
    assert bench.batch(batch_id).checked == 1


def test_the_jobs_of_a_batch_are_kept_as_long_as_the_batch(bench: BatchBench) -> None:
    batch_id = bench.running(lines=2)
    first = bench.submit(batch_id, 0)
    bench.jobs.store.finish(bench.jobs.claim(), DONE)
    bench.jobs.reap_after(POLICY.retention_s + 10)
    assert bench.jobs.record(first.id).status is JobStatus.SUCCEEDED
    bench.submit(batch_id, 1)
    bench.jobs.store.finish(bench.jobs.claim(), DONE)
    assert bench.batch(batch_id).phase is Phase.ENDED
    bench.jobs.reap_after(POLICY.retention_s - 100)
    assert bench.jobs.record(first.id).status is JobStatus.SUCCEEDED
    bench.jobs.reap_after(200)
    assert bench.jobs.record(first.id).status is JobStatus.SUCCEEDED, "the batch is still there"


def test_forgetting_leaves_nothing_of_a_batch(bench: BatchBench) -> None:
    key = Idempotency("k1", "digest")
    new = new_batch(lines=2)
    bench.batches.create(new, MANY, key)
    bench.batches.open(new.id, "blob")
    turn = bench.turn()
    bench.batches.check(turn, Checked(stored_lines(2), offset=20, number=2, cost=1))
    bench.batches.start(turn, None)
    done, left = bench.submit(new.id, 0), bench.submit(new.id, 1)
    bench.jobs.store.finish(bench.jobs.claim(), DONE)
    bench.batches.forget_jobs([done.id, left.id, new_job_id()])
    assert (bench.jobs.store.get(done.id), bench.jobs.record(left.id).id) == (None, left.id)
    bench.batches.forget(new.id)
    bench.batches.forget(new.id)
    assert bench.batches.get(new.id) is None
    assert bench.batches.list("ada", None, 10).batches == ()
    assert bench.batches.lines(new.id, 0, 10) == ()
    assert bench.batches.create(new_batch(), MANY, key).id != new.id
    bench.jobs.store.finish(bench.jobs.claim(), DONE)
    bench.jobs.reap_after(POLICY.retention_s + 10)
    assert bench.jobs.store.get(left.id) is None


def test_a_batch_is_known_to_the_sweep_of_blobs(bench: BatchBench) -> None:
    batch_id, other = bench.upload(), "batch_" + "a" * 26
    job_id = bench.jobs.submit()
    assert bench.jobs.store.known([batch_id, other, job_id]) == {batch_id, job_id}


def test_only_the_first_wrong_lines_are_shown_with_the_batch(bench: BatchBench) -> None:
    batch_id = bench.upload(lines=30)
    lines = tuple(StoredLine(number=n, offset=n, nbytes=1, fault=FAULT) for n in range(30))
    bench.batches.check(bench.turn(), Checked(lines, offset=30, number=30, cost=0))
    assert bench.batch(batch_id).wrong == lines[:20]
    assert bench.batch(batch_id).invalid == 30
