"""Batches that name an endpoint, over HTTP, and what the courier posts of their end."""

import json
from collections.abc import Mapping
from functools import partial

import httpx
import pytest

from api.batches import ended_batch
from services.webhooks.courier import Courier
from services.webhooks.poster import Reply
from tests.api.conftest import Stand
from tests.api.test_batches import JSONL, jsonl, line
from tests.api.test_webhooks import ABSENT, registered

pytestmark = pytest.mark.anyio


class Poster:
    def __init__(self) -> None:
        self.sent: list[tuple[Mapping[str, str], bytes]] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.sent.append((headers, body))
        return Reply(status=204)


async def posts(stand: Stand) -> Poster:
    poster = Poster()
    batches = partial(ended_batch, stand.services.batches)
    courier = Courier(stand.deliveries, stand.services.webhooks, stand.store, poster, batches=batches)
    await courier.round()
    await courier.idle()
    return poster


async def test_the_end_of_a_batch_is_posted_to_the_endpoint_it_names(client: httpx.AsyncClient, stand: Stand) -> None:
    endpoint = (await registered(client))["id"]
    posted = await client.post(f"/v1/batches?label=x&webhook={endpoint}", content=jsonl(line("a")), headers=JSONL)
    assert posted.status_code == 202, posted.text
    assert posted.json()["webhook"] == endpoint
    batch_id = posted.json()["id"]
    ended = (await client.post(f"/v1/batches/{batch_id}/cancel")).json()
    ((headers, body),) = (await posts(stand)).sent
    assert headers["webhook-id"] == "msg_" + batch_id
    told = json.loads(body)
    assert (told["type"], told["timestamp"]) == ("batch.ended", ended["finished_at"])
    assert told["data"] == {name: ended[name] for name in ("id", "label", "status", "finished_at", "counts")}
    (outcome,) = (await client.get(f"/v1/webhooks/{endpoint}")).json()["deliveries"]
    assert (outcome["job_id"], outcome["batch_id"], outcome["outcome"]) == (None, batch_id, "delivered")


async def test_a_batch_deleted_before_its_message_left_is_not_told(client: httpx.AsyncClient, stand: Stand) -> None:
    endpoint = (await registered(client))["id"]
    posted = await client.post(f"/v1/batches?webhook={endpoint}", content=jsonl(line("a")), headers=JSONL)
    batch_id = posted.json()["id"]
    await client.post(f"/v1/batches/{batch_id}/cancel")
    assert (await client.delete(f"/v1/batches/{batch_id}")).status_code == 204
    assert (await posts(stand)).sent == []
    assert stand.deliveries.waiting("alice") == 0


async def test_an_endpoint_that_may_not_be_named_is_refused_at_its_parameter(
    client: httpx.AsyncClient, stand: Stand
) -> None:
    async with stand.client(stand.key("bob")) as bob:
        foreign = (await registered(bob))["id"]
    (item,) = (await client.post(f"/v1/batches?webhook={foreign}", content=jsonl(line("a")), headers=JSONL)).json()[
        "errors"
    ]
    assert (item["parameter"], item["code"]) == ("webhook", "unknown_webhook")
    refused = await client.post(f"/v1/batches?webhook={ABSENT}", content=jsonl(line("a")), headers=JSONL)
    assert refused.status_code == 422
    (item,) = refused.json()["errors"]
    assert (item["parameter"], item["code"]) == ("webhook", "unknown_webhook")
    assert "there is no webhook" in item["message"]


async def test_another_endpoint_makes_another_request_of_an_upload(client: httpx.AsyncClient) -> None:
    endpoint = (await registered(client))["id"]
    headers = {**JSONL, "Idempotency-Key": "k1"}
    first = await client.post(f"/v1/batches?webhook={endpoint}", content=jsonl(line("a")), headers=headers)
    again = await client.post(f"/v1/batches?webhook={endpoint}", content=jsonl(line("a")), headers=headers)
    assert first.json()["id"] == again.json()["id"]
    other = await client.post("/v1/batches", content=jsonl(line("a")), headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
