"""The queues of messages: the fake and the real one."""

from pathlib import Path

import pytest

from services.adapters.redis_client import make_client
from services.contracts.errors import ErrorCode
from services.contracts.job import JobError
from services.jobs.record import Cancelled, Failed, Size
from services.webhooks.store import MAX_OF_AN_OWNER, Delivery, Settlement
from tests.services.adapters.valkey import valkey_server
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import DONE
from tests.services.webhooks.bench import LEASE_S, Bench, valkey_bench

DELIVERED = Settlement()


@pytest.mark.parametrize("ending", [DONE, Cancelled(), Failed(JobError(code=ErrorCode.INTERNAL, message="broken"))])
def test_a_job_that_ends_puts_one_message_in_the_queue(bench: Bench, ending: object) -> None:
    endpoint = bench.endpoint()
    job_id = bench.submit(endpoint)
    assert bench.claim() == []
    claim = bench.jobs.claim("default", "w1", tuple(Size))
    assert claim is not None
    for _ in range(2):
        assert bench.jobs.finish(claim, ending)  # type: ignore[arg-type]  # parametrised over the union
    (delivery,) = bench.claim()
    assert delivery == Delivery("msg_" + job_id[4:], "ada", endpoint.id, job_id, attempt=1)
    assert bench.claim() == []


def test_a_job_that_ends_without_a_worker_is_told_as_well(bench: Bench) -> None:
    endpoint = bench.endpoint()
    cancelled, overdue = bench.submit(endpoint), bench.submit(endpoint)
    bench.jobs.cancel(cancelled)
    bench.jobs.cancel(cancelled)
    assert [each.subject for each in bench.claim()] == [cancelled]
    bench.jobs.delete(overdue)
    assert [each.subject for each in bench.claim()] == [overdue]


def test_a_job_without_a_webhook_or_with_one_that_is_gone_queues_nothing(bench: Bench) -> None:
    endpoint = bench.endpoint()
    job_id = bench.submit(endpoint)
    bench.webhooks.delete(endpoint.id)
    bench.jobs.cancel(job_id)
    assert bench.claim() == []
    assert bench.deliveries.waiting("ada") == 0


def test_a_settled_message_is_done_with(bench: Bench) -> None:
    bench.cancelled(bench.endpoint())
    (delivery,) = bench.claim()
    assert bench.deliveries.waiting("ada") == 1
    assert bench.deliveries.settle(delivery, DELIVERED)
    assert not bench.deliveries.settle(delivery, DELIVERED)
    bench.advance(10 * LEASE_S)
    assert bench.claim() == []
    assert bench.deliveries.waiting("ada") == 0


def test_a_message_that_was_not_accepted_is_due_after_its_pause(bench: Bench) -> None:
    bench.cancelled(bench.endpoint())
    (first,) = bench.claim()
    bench.deliveries.settle(first, Settlement(again_in_s=100))
    bench.advance(99)
    assert bench.claim() == []
    bench.advance(2)
    (second,) = bench.claim()
    assert (second.id, second.attempt) == (first.id, 2)


def test_a_message_whose_courier_died_is_due_when_the_lease_ends_and_the_dead_ones_word_counts_no_more(
    bench: Bench,
) -> None:
    bench.cancelled(bench.endpoint())
    (first,) = bench.claim()
    bench.advance(LEASE_S - 1)
    assert bench.claim() == []
    bench.advance(2)
    (second,) = bench.claim()
    assert (second.id, second.attempt) == (first.id, 2)
    assert not bench.deliveries.settle(first, DELIVERED)
    assert bench.deliveries.waiting("ada") == 1
    assert bench.deliveries.settle(second, DELIVERED)


def test_owners_take_turns_and_none_has_more_under_way_than_its_share(bench: Bench) -> None:
    slow, other = bench.endpoint("slow"), bench.endpoint("other")
    for _ in range(50):
        bench.cancelled(slow)
    bench.cancelled(other)
    claimed = bench.claim()
    assert [each.owner for each in claimed].count("slow") == MAX_OF_AN_OWNER
    assert [each.owner for each in claimed].index("other") <= 1
    assert bench.claim() == []
    bench.cancelled(other)
    assert [each.owner for each in bench.claim()] == ["other"]
    held = next(each for each in claimed if each.owner == "slow")
    bench.deliveries.settle(held, DELIVERED)
    assert [each.owner for each in bench.claim()] == ["slow"]


def test_a_share_that_dead_couriers_hold_is_free_when_their_leases_end(bench: Bench) -> None:
    slow = bench.endpoint("slow")
    for _ in range(2 * MAX_OF_AN_OWNER):
        bench.cancelled(slow)
    assert len(bench.claim()) == MAX_OF_AN_OWNER
    bench.advance(LEASE_S + 1)
    assert len(bench.claim()) == MAX_OF_AN_OWNER


def test_no_more_are_claimed_than_asked_for_and_all_come_in_the_end(bench: Bench) -> None:
    endpoints = [bench.endpoint(f"owner{number}") for number in range(5)]
    jobs = {bench.cancelled(endpoint) for endpoint in endpoints for _ in range(3)}
    told: list[str] = []
    while claimed := bench.claim(at_most=2):
        assert len(claimed) <= 2
        for delivery in claimed:
            told.append(delivery.subject)
            bench.deliveries.settle(delivery, DELIVERED)
    assert len(told) == len(jobs)
    assert set(told) == jobs


def test_two_tenants_with_names_alike_have_queues_of_their_own(bench: Bench) -> None:
    for owner in ("a", "a.b", "a@b"):
        bench.cancelled(bench.endpoint(owner))
    assert sorted(each.owner for each in bench.claim()) == ["a", "a.b", "a@b"]


def test_a_job_past_its_retention_leaves_its_message_to_be_dropped(bench: Bench) -> None:
    job_id = bench.cancelled(bench.endpoint())
    bench.advance(POLICY.retention_s + 1)
    bench.jobs.reap()
    assert bench.jobs.get(job_id) is None
    (delivery,) = bench.claim()
    assert bench.deliveries.settle(delivery, DELIVERED)


def test_messages_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        with make_client(server.url, patient=False) as client:
            job_id = valkey_bench(client).cancelled(valkey_bench(client).endpoint())
        server.stop()
        server.start()
        with make_client(server.url, patient=False) as client:
            assert [each.subject for each in valkey_bench(client).claim()] == [job_id]


def test_an_endpoint_is_disabled_since_the_first_message_that_found_it_gone(bench: Bench) -> None:
    endpoint = bench.endpoint()
    since = []
    for _ in range(2):
        bench.cancelled(endpoint)
    for delivery in bench.claim():
        bench.deliveries.settle(delivery, Settlement(disable=True))
        gone = bench.webhooks.get(endpoint.id)
        assert gone is not None
        since.append(gone.disabled_at)
        bench.advance(1)
    assert since[0] is not None
    assert since[0] == since[1]
