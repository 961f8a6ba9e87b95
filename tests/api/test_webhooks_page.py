"""What docs/webhooks.md shows, done: the request, the job, the message and the receiver."""

import threading
import time
from collections.abc import Iterator
from http.server import HTTPServer
from typing import Any

import httpx
import pytest

from services.adapters.webhook_poster import HttpPoster
from services.contracts.webhook import BatchEnded, JobEnded
from services.webhooks.courier import Courier
from services.webhooks.schedule import PAUSES_S
from services.webhooks.urls import UrlRules
from tests.api.catalogue import MODEL
from tests.api.conftest import Stand
from tests.documents import PROJECT, http_requests, json_blocks, python_blocks

pytestmark = pytest.mark.anyio

PAGE = PROJECT / "docs/webhooks.md"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The page's receiver, running: what its script defines, and the `port`."""
    monkeypatch.setenv("LENSD_WEBHOOK_SECRET", "whsec_")
    names: dict[str, Any] = {"__name__": "receiver"}
    (block,) = python_blocks(PAGE)
    exec(compile(block, str(PAGE), "exec"), names)
    server = HTTPServer(("127.0.0.1", 0), names["Receiver"])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield {**names, "globals": names, "port": server.server_address[1]}
    finally:
        server.shutdown()
        server.server_close()


async def test_the_receiver_takes_what_lensd_sends_and_nothing_else(
    stand: Stand, receiver: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    rules = UrlRules(frozenset({f"127.0.0.1:{receiver['port']}"}))
    async with stand.client(stand.key("alice"), stand.app_with(webhook_urls=rules)) as alice:
        url = f"http://127.0.0.1:{receiver['port']}/"
        endpoint = (await alice.post("/v1/webhooks", json={"url": url})).json()
        receiver["globals"]["SECRET"] = endpoint["secret"]
        (job,) = [block for block in json_blocks(PAGE) if "kind" in block]
        job_id = (await alice.post("/v1/jobs", json={**job, "model": MODEL, "webhook": endpoint["id"]})).json()["id"]
        await alice.post(f"/v1/jobs/{job_id}/cancel")
        courier = Courier(stand.deliveries, stand.services.webhooks, stand.store, HttpPoster(rules))
        await courier.round()
        await courier.idle()
        (delivery,) = (await alice.get(f"/v1/webhooks/{endpoint['id']}")).json()["deliveries"]
        assert (delivery["outcome"], delivery["status"]) == ("delivered", 204)
        assert f"job.cancelled {job_id}" in capfd.readouterr().out
        await forged_is_refused(url)


async def forged_is_refused(url: str) -> None:
    signed = {"webhook-id": "msg_a", "webhook-signature": "v1,AAAA"}
    async with httpx.AsyncClient(trust_env=False) as anyone:
        for timestamp in ("1614265330", str(int(time.time())), "yesterday"):
            headers = {**signed, "webhook-timestamp": timestamp}
            assert (await anyone.post(url, content=b"{}", headers=headers)).status_code == 401
        assert (await anyone.post(url, content=b"{}")).status_code == 401


async def test_the_request_that_registers_is_accepted(client: httpx.AsyncClient) -> None:
    (request,) = http_requests(PAGE)
    response = await client.request(request.method, request.path, headers=request.headers, content=request.body)
    assert response.status_code == 201


def test_the_messages_shown_are_what_is_sent() -> None:
    of_job, of_batch = [block for block in json_blocks(PAGE) if "type" in block and "kind" not in block]
    assert JobEnded.model_validate(of_job).model_dump(mode="json").keys() == of_job.keys()
    assert BatchEnded.model_validate(of_batch).model_dump(mode="json").keys() == of_batch.keys()


def test_the_pauses_told_are_those_of_the_schedule() -> None:
    assert PAUSES_S == (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 21_600, 28_800)
    assert "5 s, 30 s, 2 min, 10 min, 30 min, 1, 2, 4, 6\n  and 8 hours" in PAGE.read_text(encoding="utf-8")
    assert "eleven tries" in PAGE.read_text(encoding="utf-8")
    assert len(PAUSES_S) + 1 == 11
    assert sum(PAUSES_S) < 22 * 3_600
