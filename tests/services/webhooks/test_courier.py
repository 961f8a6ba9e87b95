"""The courier, on the fakes and on the real stores; the way out is in the test's hand."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from services.contracts.errors import ErrorCode, Unavailable
from services.contracts.job import JobError
from services.jobs.record import Failed, Size
from services.webhooks.courier import LEASE_S, Courier
from services.webhooks.endpoint import Endpoint, new_secret
from services.webhooks.poster import TIMEOUT_S, Reply
from services.webhooks.schedule import MAX_TRIES, PAUSES_S
from services.webhooks.signing import signed_headers
from services.webhooks.store import Delivery, Settlement
from tests.services.webhooks.bench import Bench, memory_bench

pytestmark = pytest.mark.anyio

ACCEPTED, BUSY, GONE, SILENT = Reply(status=204), Reply(status=503), Reply(status=410), Reply(reason="timed_out")


@dataclass
class Sent:
    url: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class ScriptedPoster:
    """Gives one reply after the other, the last one for ever; waits for `open` first."""

    replies: list[Reply]
    sent: list[Sent] = field(default_factory=list)
    open: asyncio.Event | None = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.sent.append(Sent(url, headers, body))
        if self.open is not None:
            await self.open.wait()
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def courier_on(bench: Bench, *replies: Reply) -> tuple[Courier, ScriptedPoster]:
    poster = ScriptedPoster(list(replies) or [ACCEPTED])
    return Courier(bench.deliveries, bench.webhooks, bench.jobs, poster), poster


async def go(courier: Courier) -> int:
    """One round, and all that it started."""
    started = await courier.round()
    await courier.idle()
    return started


async def test_the_end_of_a_job_is_told_with_its_summary_and_a_signature(bench: Bench) -> None:
    endpoint = bench.endpoint()
    job_id = bench.submit(endpoint)
    claim = bench.jobs.claim("default", "w1", tuple(Size))
    assert claim is not None
    bench.jobs.finish(claim, Failed(JobError(code=ErrorCode.OUT_OF_MEMORY, message="too large")))
    courier, poster = courier_on(bench)
    assert await go(courier) == 1
    (sent,) = poster.sent
    job = bench.jobs.get(job_id)
    assert job is not None
    assert json.loads(sent.body) == {
        "type": "job.failed",
        "timestamp": json.loads(job.model_dump_json())["finished_at"],
        "data": json.loads(job.summary().model_dump_json()),
    }
    assert sent.url == endpoint.url
    assert sent.headers["content-type"] == "application/json"
    sent_at = datetime.fromtimestamp(int(sent.headers["webhook-timestamp"]), UTC)
    assert abs(datetime.now(UTC) - sent_at) < timedelta(minutes=1)
    assert signed_headers("msg_" + job_id[4:], sent_at, sent.body, [endpoint.secret]).items() <= sent.headers.items()
    assert bench.deliveries.waiting("ada") == 0


async def test_neither_prompts_nor_results_leave_with_a_message(bench: Bench) -> None:
    bench.submit(bench.endpoint())
    bench.run_next()
    courier, poster = courier_on(bench)
    await go(courier)
    assert json.loads(poster.sent[0].body)["type"] == "job.succeeded"
    assert not {"spec", "inputs", "result", "prompts"} & json.loads(poster.sent[0].body)["data"].keys()
    assert b"Paris" not in poster.sent[0].body


async def test_a_message_that_fails_is_sent_again_under_its_name(bench: Bench) -> None:
    endpoint = bench.endpoint()
    bench.cancelled(endpoint)
    courier, poster = courier_on(bench, BUSY, SILENT, ACCEPTED)
    for pause in (*PAUSES_S[:2], 0):
        assert await go(courier) == 1
        assert await go(courier) == 0
        bench.advance(pause + 1)
    assert len({(sent.message_id, json.loads(sent.body)["data"]["id"]) for sent in poster.sent}) == 1
    outcomes = bench.webhooks.outcomes(endpoint.id)
    assert [(each.attempt, each.outcome, each.status, each.reason) for each in outcomes] == [
        (3, "delivered", 204, None),
        (2, "will_retry", None, "timed_out"),
        (1, "will_retry", 503, "status"),
    ]
    assert [each.next_attempt_at is None for each in outcomes] == [True, False, False]


async def test_every_try_sends_the_same_bytes() -> None:
    bench = memory_bench()
    bench.cancelled(bench.endpoint())
    courier, poster = courier_on(bench, BUSY)
    for pause in PAUSES_S[:3]:
        await go(courier)
        bench.advance(pause)
    assert len(poster.sent) == 3
    assert len({sent.body for sent in poster.sent}) == 1


async def test_after_the_last_try_a_message_is_given_up(bench: Bench) -> None:
    endpoint = bench.endpoint()
    bench.cancelled(endpoint)
    courier, poster = courier_on(bench, BUSY)
    for attempt in range(len(PAUSES_S) + 1):
        assert await go(courier) == 1, attempt
        # The job is kept, as in a deployment it is for longer than all the tries take.
        bench.advance(PAUSES_S[attempt] + 1 if attempt < len(PAUSES_S) else 0)
    assert len(poster.sent) == len(PAUSES_S) + 1
    assert bench.webhooks.outcomes(endpoint.id)[0].outcome == "gave_up"
    assert bench.deliveries.waiting("ada") == 0


async def test_410_disables_the_endpoint_and_drops_what_waits_for_it(bench: Bench) -> None:
    endpoint, other = bench.endpoint(), bench.endpoint()
    bench.cancelled(endpoint)
    courier, poster = courier_on(bench, GONE, ACCEPTED)
    await go(courier)
    disabled = bench.webhooks.get(endpoint.id)
    assert disabled is not None
    assert disabled.disabled_at is not None
    bench.cancelled(endpoint)
    bench.cancelled(other)
    await go(courier)
    assert len(poster.sent) == 2
    assert bench.webhooks.outcomes(endpoint.id)[0].outcome == "gave_up"
    assert bench.webhooks.outcomes(other.id)[0].outcome == "delivered"
    assert bench.deliveries.waiting("ada") == 0


class UnreadableWebhooks:
    """A store whose record of any endpoint is damaged."""

    def __init__(self, bench: Bench) -> None:
        self.create, self.list, self.rotate = bench.webhooks.create, bench.webhooks.list, bench.webhooks.rotate
        self.delete, self.outcomes = bench.webhooks.delete, bench.webhooks.outcomes

    def get(self, endpoint_id: str) -> Endpoint | None:
        raise KeyError(endpoint_id)


async def test_a_message_that_cannot_be_made_is_dropped_in_the_end(bench: Bench) -> None:
    bench.cancelled(bench.endpoint())
    _, poster = courier_on(bench)
    courier = Courier(bench.deliveries, UnreadableWebhooks(bench), bench.jobs, poster)
    for _ in range(MAX_TRIES + 1):
        assert await go(courier) == 1
        bench.advance(LEASE_S + 1)
    assert await go(courier) == 0
    assert bench.deliveries.waiting("ada") == 0
    assert poster.sent == []


@pytest.mark.parametrize("lost", ["endpoint", "job"])
async def test_a_message_whose_endpoint_or_job_is_gone_is_dropped(bench: Bench, lost: str) -> None:
    endpoint = bench.endpoint()
    job_id = bench.cancelled(endpoint)
    if lost == "endpoint":
        bench.webhooks.delete(endpoint.id)
    else:
        bench.jobs.delete(job_id)
    courier, poster = courier_on(bench)
    await go(courier)
    assert poster.sent == []
    assert bench.deliveries.waiting("ada") == 0


async def test_both_secrets_sign_while_one_is_exchanged(bench: Bench) -> None:
    endpoint = bench.endpoint()
    courier, poster = courier_on(bench)
    bench.webhooks.rotate(endpoint.id, new_secret(), datetime.now(UTC) + timedelta(hours=1))
    bench.cancelled(endpoint)
    await go(courier)
    assert len(poster.sent[0].headers["webhook-signature"].split(" ")) == 2


class DyingDeliveries:
    """A queue whose server goes away once messages are claimed."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.claim = bench.deliveries.claim
        self.waiting = bench.deliveries.waiting

    def settle(self, delivery: Delivery, settlement: Settlement) -> bool:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer")


async def test_a_courier_that_cannot_say_what_it_did_leaves_the_message_to_be_sent_again(bench: Bench) -> None:
    bench.cancelled(bench.endpoint())
    courier, poster = courier_on(bench)
    dying = Courier(DyingDeliveries(bench), bench.webhooks, bench.jobs, poster)
    assert await go(dying) == 1
    assert await go(courier) == 0
    bench.advance(LEASE_S + 1)
    assert await go(courier) == 1
    first, second = poster.sent
    assert first.message_id == second.message_id
    assert bench.deliveries.waiting("ada") == 0


async def test_a_courier_that_ends_leaves_what_is_under_way_to_another() -> None:
    bench = memory_bench()
    bench.cancelled(bench.endpoint())
    poster = ScriptedPoster([ACCEPTED], open=asyncio.Event())
    async with Courier(bench.deliveries, bench.webhooks, bench.jobs, poster, parting_s=0.01):
        while not poster.sent:
            await asyncio.sleep(0.01)
    assert bench.deliveries.waiting("ada") == 1
    successor, _ = courier_on(bench)
    bench.advance(LEASE_S + 1)
    assert await go(successor) == 1
    assert bench.deliveries.waiting("ada") == 0


async def test_slow_receivers_of_one_owner_hold_up_nobody_else(bench: Bench) -> None:
    slow, other = bench.endpoint("slow"), bench.endpoint("other")
    for _ in range(100):
        bench.cancelled(slow)
    courier, poster = courier_on(bench)
    poster.open = asyncio.Event()
    await courier.round()
    job_id = bench.cancelled(other)
    await courier.round()
    while len(poster.sent) < 5:
        await asyncio.sleep(0.01)
    assert "msg_" + job_id[4:] in {sent.message_id for sent in poster.sent}
    poster.open.set()
    await courier.idle()


def test_a_lease_is_longer_than_a_try_may_take() -> None:
    assert LEASE_S >= TIMEOUT_S + 5
