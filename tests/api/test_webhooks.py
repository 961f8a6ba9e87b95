"""Endpoints over HTTP: registering, looking, rotating, forgetting; and jobs that name them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from services.contracts.webhook import DeliveryOutcome
from services.tenants.keys import Scope
from services.webhooks.endpoint import MAX_ENDPOINTS
from services.webhooks.store import Settlement
from services.webhooks.urls import UrlRules
from tests.api.conftest import Stand
from tests.api.specs import PATCHING

pytestmark = pytest.mark.anyio

HOOK = {"url": "https://hooks.example.com/lensd", "description": "nightly"}
ABSENT = "wh_" + "a" * 26


async def registered(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/webhooks", json={**HOOK, **fields})
    assert response.status_code == 201, response.text
    endpoint: dict[str, Any] = response.json()
    return endpoint


async def test_a_registered_endpoint_is_shown_with_its_secret_once(client: httpx.AsyncClient) -> None:
    fresh = await registered(client)
    secret = fresh.pop("secret")
    assert secret.startswith("whsec_")
    assert fresh.items() >= {**HOOK, "retiring_until": None, "disabled_at": None}.items()
    listed = await client.get("/v1/webhooks")
    assert listed.json() == {"webhooks": [fresh]}
    shown = await client.get(f"/v1/webhooks/{fresh['id']}")
    assert shown.json() == {**fresh, "deliveries": []}
    assert secret not in listed.text + shown.text


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://169.254.169.254/latest",
        "https://user:secret@hooks.example.com/",
        "https://hooks.example.com:8443/",
        "not a url",
    ],
)
async def test_a_url_that_is_not_public_https_is_refused_where_it_stands(client: httpx.AsyncClient, url: str) -> None:
    response = await client.post("/v1/webhooks", json={"url": url})
    assert response.status_code == 422
    (item,) = response.json()["errors"]
    assert (item["pointer"], item["code"]) == ("/url", "invalid_url")
    assert (await client.get("/v1/webhooks")).json() == {"webhooks": []}


async def test_a_host_that_the_operator_trusts_may_be_registered(stand: Stand) -> None:
    app = stand.app_with(webhook_urls=UrlRules(frozenset({"127.0.0.1:8080"})))
    async with stand.client(stand.key("alice"), app) as client:
        await registered(client, url="http://127.0.0.1:8080/hook")
        refused = await client.post("/v1/webhooks", json={"url": "http://127.0.0.1:8081/hook"})
        assert refused.status_code == 422


async def test_one_more_than_as_many_as_may_be_is_refused(client: httpx.AsyncClient) -> None:
    for _ in range(MAX_ENDPOINTS):
        await registered(client)
    response = await client.post("/v1/webhooks", json=HOOK)
    assert (response.status_code, response.json()["code"]) == (409, "too_many_webhooks")


async def test_a_rotation_shows_a_fresh_secret_and_how_long_the_old_one_signs(client: httpx.AsyncClient) -> None:
    first = await registered(client)
    response = await client.post(f"/v1/webhooks/{first['id']}/rotate", json={"overlap_s": 3_600})
    second = response.json()
    assert response.status_code == 200
    assert second["secret"] != first["secret"]
    until = datetime.fromisoformat(second["retiring_until"])
    assert timedelta(minutes=59) < until - datetime.now(UTC) <= timedelta(hours=1)
    third = (await client.post(f"/v1/webhooks/{first['id']}/rotate", json={"overlap_s": 0})).json()
    assert third["retiring_until"] is None
    refused = await client.post(f"/v1/webhooks/{first['id']}/rotate", json={"overlap_s": -1})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/overlap_s")


async def test_a_deleted_endpoint_is_gone(client: httpx.AsyncClient) -> None:
    endpoint_id = (await registered(client))["id"]
    assert (await client.delete(f"/v1/webhooks/{endpoint_id}")).status_code == 204
    for response in (
        await client.delete(f"/v1/webhooks/{endpoint_id}"),
        await client.get(f"/v1/webhooks/{endpoint_id}"),
        await client.post(f"/v1/webhooks/{endpoint_id}/rotate", json={}),
        await client.get("/v1/webhooks/anything%20else"),
    ):
        assert (response.status_code, response.json()["code"]) == (404, "unknown_webhook")


async def test_a_key_that_may_only_read_changes_nothing(stand: Stand, client: httpx.AsyncClient) -> None:
    endpoint_id = (await registered(client))["id"]
    async with stand.client(stand.key("alice", Scope.READ)) as reader:
        assert (await reader.get(f"/v1/webhooks/{endpoint_id}")).status_code == 200
        for response in (
            await reader.post("/v1/webhooks", json=HOOK),
            await reader.post(f"/v1/webhooks/{endpoint_id}/rotate", json={}),
            await reader.delete(f"/v1/webhooks/{endpoint_id}"),
        ):
            assert response.status_code == 403


async def test_a_job_that_names_an_endpoint_is_told_there_when_it_ends(stand: Stand, client: httpx.AsyncClient) -> None:
    endpoint_id = (await registered(client))["id"]
    job_id = (await client.post("/v1/jobs", json={**PATCHING, "webhook": endpoint_id})).json()["id"]
    assert stand.deliveries.waiting("alice") == 0
    await client.post(f"/v1/jobs/{job_id}/cancel")
    (delivery,) = stand.deliveries.claim(10, 30)
    assert (delivery.endpoint_id, delivery.subject) == (endpoint_id, job_id)


async def test_someone_elses_endpoint_is_refused_in_the_words_for_one_that_is_not_there(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    endpoint_id = (await registered(client))["id"]
    async with stand.client(stand.key("bob")) as bob:
        foreign = await bob.post("/v1/jobs", json={**PATCHING, "webhook": endpoint_id})
        absent = await bob.post("/v1/jobs", json={**PATCHING, "webhook": ABSENT})
    assert foreign.status_code == absent.status_code == 422
    assert foreign.json()["errors"][0]["pointer"] == "/webhook"
    assert foreign.json()["code"] == "unknown_webhook"
    shown = {**foreign.json(), "request_id": absent.json()["request_id"]}
    assert str(shown).replace(endpoint_id, ABSENT) == str(absent.json())


@pytest.mark.parametrize("webhook", ["wh_1", "", "https://hooks.example.com/", 7, {}])
async def test_what_cannot_be_an_endpoints_id_is_refused(client: httpx.AsyncClient, webhook: object) -> None:
    response = await client.post("/v1/jobs", json={**PATCHING, "webhook": webhook})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/webhook")


async def test_the_latest_deliveries_and_the_end_of_an_endpoint_are_shown(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    endpoint_id = (await registered(client))["id"]
    spec = {**PATCHING, "webhook": endpoint_id}
    job_id = (await client.post("/v1/jobs", json=spec)).json()["id"]
    await client.post(f"/v1/jobs/{job_id}/cancel")
    (delivery,) = stand.deliveries.claim(10, 30)
    outcome = DeliveryOutcome(
        message_id=delivery.id,
        job_id=job_id,
        at=datetime.now(UTC),
        attempt=1,
        outcome="gave_up",
        status=410,
        reason="status",
        next_attempt_at=None,
    )
    stand.deliveries.settle(delivery, Settlement(outcome=outcome, disable=True))
    shown = (await client.get(f"/v1/webhooks/{endpoint_id}")).json()
    assert shown["disabled_at"] is not None
    assert [(each["status"], each["outcome"]) for each in shown["deliveries"]] == [(410, "gave_up")]
    refused = await client.post("/v1/jobs", json=spec)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/webhook")
    assert "410" in refused.json()["detail"]
