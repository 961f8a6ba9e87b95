"""Posting, waiting for, listing, cancelling and deleting jobs."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from services.contracts.errors import ErrorCode, Unavailable
from services.contracts.job import JobError, JobStatus
from services.jobs.memory import MemoryEvents, MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import JobRecord, NewJob, StoredResult
from tests.api.conftest import POOL, Stand
from tests.api.specs import ATTRIBUTION, FEATURES, PATCHING, patching_result

pytestmark = pytest.mark.anyio

STORED = StoredResult(document=patching_result().model_dump_json())


async def submitted(client: httpx.AsyncClient, spec: dict[str, Any] = PATCHING, **changed: object) -> str:
    response = await client.post("/v1/jobs", json={**spec, **changed})
    assert response.status_code == 202, response.text
    job_id: str = response.json()["id"]
    return job_id


async def after(condition: Any) -> None:
    """Wait until `condition()` holds."""
    while not condition():
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("spec", [PATCHING, ATTRIBUTION, FEATURES])
async def test_a_posted_job_is_accepted_and_waits_with_its_token_ids(
    stand: Stand, client: httpx.AsyncClient, spec: dict[str, Any]
) -> None:
    response = await client.post("/v1/jobs", json={**spec, "label": "mine", "metadata": {"run": "7"}})
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(response.headers["retry-after"]) >= 1
    assert "preference-applied" not in response.headers
    assert (job["status"], job["kind"], job["label"], job["metadata"]) == ("queued", spec["kind"], "mine", {"run": "7"})
    assert job["result"] is None
    claim = stand.claim()
    assert claim.job.id == job["id"]
    assert claim.job.owner == "alice"
    assert claim.inputs.tokens() > 0
    assert stand.doorbell.waiting(POOL) == 1


async def test_a_job_that_ends_within_the_wait_is_answered_with_its_result(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    async def work() -> None:
        await after(lambda: stand.store.depth(POOL))
        stand.succeed(stand.claim(), STORED)

    response, _ = await asyncio.gather(
        client.post("/v1/jobs", json=PATCHING, headers={"Prefer": "respond-async, wait=5"}), work()
    )
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=5"
    assert "retry-after" not in response.headers
    assert response.json()["status"] == "succeeded"
    assert response.json()["result"]["effects"]["mean"]["values"] == [1.0, 2.0, 3.0, None]


async def test_a_job_that_does_not_end_within_the_wait_is_accepted(stand: Stand, client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/jobs", json=PATCHING, headers={"Prefer": "wait=1"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"


async def test_a_stopping_gateway_answers_whoever_waits(stand: Stand, client: httpx.AsyncClient) -> None:
    async def stop() -> None:
        await after(lambda: stand.store.depth(POOL))
        stand.services.closing.set()

    async with asyncio.timeout(5):
        response, _ = await asyncio.gather(
            client.post("/v1/jobs", json=PATCHING, headers={"Prefer": "wait=60"}), stop()
        )
    assert response.status_code == 202


async def test_reading_a_job_can_wait_for_its_end(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    claim = stand.claim()

    async def work() -> None:
        await asyncio.sleep(0.05)
        stand.fail(claim, JobError(code=ErrorCode.METHOD_FAILED, message="it broke", correlation_id="c1"))

    response, _ = await asyncio.gather(client.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=5"}), work())
    assert response.status_code == 200
    assert response.json()["status"] == "failed"
    assert response.json()["error"] == {"code": "method_failed", "message": "it broke", "correlation_id": "c1"}
    assert response.headers["preference-applied"] == "wait=5"


async def test_progress_shows_while_a_job_runs(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    stand.advance(stand.claim(), done=4)
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert (job["status"], job["attempt"], job["progress"]) == ("running", 1, {"done": 4, "planned": 10})


async def test_jobs_are_listed_newest_first_page_by_page(client: httpx.AsyncClient) -> None:
    ids = [await submitted(client) for _ in range(5)]
    first = (await client.get("/v1/jobs", params={"limit": 3})).json()
    assert [job["id"] for job in first["jobs"]] == ids[:1:-1]
    assert "result" not in first["jobs"][0]
    second = (await client.get("/v1/jobs", params={"limit": 3, "cursor": first["cursor"]})).json()
    assert [job["id"] for job in second["jobs"]] == ids[1::-1]
    assert second["cursor"] is None


async def test_the_list_is_filtered_by_status_kind_and_label(stand: Stand, client: httpx.AsyncClient) -> None:
    running = await submitted(client)
    labelled = await submitted(client, label="a b")
    features = await submitted(client, FEATURES)
    stand.claim()
    for params, expected in (
        ({"status": "running"}, [running]),
        ({"label": "a b"}, [labelled]),
        ({"kind": "features"}, [features]),
        ({"kind": "features", "status": "running"}, []),
    ):
        jobs = (await client.get("/v1/jobs", params=params)).json()["jobs"]
        assert [job["id"] for job in jobs] == expected


@pytest.mark.parametrize(
    ("params", "parameter", "expected"),
    [
        ({"limit": "101"}, "limit", "at most 100"),
        ({"limit": "0"}, "limit", "at least 1"),
        ({"limit": "many"}, "limit", "an integer"),
        ({"status": "done"}, "status", "'queued'"),
        ({"kind": "patchin"}, "kind", "'patching'"),
        ({"label": "x" * 201}, "label", "at most 200"),
        ({"limt": "5"}, "limt", "not a parameter here"),
    ],
)
async def test_a_query_that_is_not_understood_names_the_parameter_and_what_is_allowed(
    client: httpx.AsyncClient, params: dict[str, str], parameter: str, expected: str
) -> None:
    response = await client.get("/v1/jobs", params=params)
    assert response.status_code == 422
    (item,) = response.json()["errors"]
    assert item["parameter"] == parameter
    assert expected in item["message"]


async def test_a_cursor_of_another_making_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/jobs", params={"cursor": "\x00not one"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"][0]["parameter"] == "cursor"


async def test_cancelling_is_immediate_for_a_queued_job_and_harmless_twice(client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    for _ in range(2):
        response = await client.post(f"/v1/jobs/{job_id}/cancel")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")


async def test_a_running_job_is_asked_to_stop(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    claim = stand.claim()
    assert (await client.post(f"/v1/jobs/{job_id}/cancel")).json()["status"] == "running"
    assert stand.store.heartbeat([claim])[job_id].stop is not None


async def test_a_deleted_job_is_gone_with_its_blobs(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    stand.blobs.put(f"{job_id}/1/{'0' * 32}", b"data")
    stand.succeed(stand.claim(), STORED)
    response = await client.delete(f"/v1/jobs/{job_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert (await client.get(f"/v1/jobs/{job_id}")).status_code == 404
    assert not stand.blobs.jobs()


async def test_a_running_job_cannot_be_deleted(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    stand.claim()
    response = await client.delete(f"/v1/jobs/{job_id}")
    assert (response.status_code, response.json()["code"]) == (409, "job_running")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/{id}"),
        ("GET", "/v1/jobs/{id}/events"),
        ("GET", "/v1/jobs/{id}/result"),
        ("GET", "/v1/jobs/{id}/tensors/effects"),
        ("POST", "/v1/jobs/{id}/cancel"),
        ("DELETE", "/v1/jobs/{id}"),
    ],
)
async def test_someone_elses_job_looks_like_one_that_does_not_exist(
    stand: Stand, client: httpx.AsyncClient, method: str, path: str
) -> None:
    theirs = await submitted(client)
    nobodys = "job_" + "a" * 26
    async with stand.client(stand.key("bob")) as other:
        answers = [await other.request(method, path.format(id=job_id)) for job_id in (theirs, nobodys)]
    seen, missing = (
        {**answer.json(), "request_id": None, "instance": None, "detail": answer.json()["detail"].replace(job_id, "")}
        for answer, job_id in zip(answers, (theirs, nobodys), strict=True)
    )
    assert seen == missing
    assert (seen["status"], seen["code"]) == (404, "job_not_found")
    assert (await client.get(f"/v1/jobs/{theirs}")).json()["status"] == "queued"


@pytest.mark.parametrize("job_id", ["job_1", "JOB_" + "a" * 26, "job_" + "a" * 5_000, "%00", "%ff%fe", "..%2f..%2fetc"])
async def test_what_cannot_be_a_job_id_is_not_found(client: httpx.AsyncClient, job_id: str) -> None:
    response = await client.get(f"/v1/jobs/{job_id}")
    assert response.status_code == 404
    assert len(response.json()["detail"]) < 200


class StoreWithoutServer(MemoryJobStore):
    """A store whose server went away."""

    def create(self, job: NewJob, idempotency: object = None) -> JobRecord:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer", retry_after_s=3)

    def get(self, job_id: str) -> JobRecord | None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer", retry_after_s=3)


async def test_without_the_store_clients_are_asked_to_try_again(stand: Stand) -> None:
    app = stand.app_with(store=StoreWithoutServer(JobPolicy()))
    async with stand.client(stand.key("alice"), app) as client:
        for response in (await client.post("/v1/jobs", json=PATCHING), await client.get("/v1/jobs/job_" + "a" * 26)):
            assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
            assert response.headers["retry-after"] == "3"


class StoreThatLeaves(MemoryJobStore):
    """A store whose server goes away once a job is accepted."""

    def get(self, job_id: str) -> JobRecord | None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer")

    def queued_ahead(self, job_id: str) -> int | None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer")


async def test_an_accepted_job_is_told_even_if_the_store_leaves_while_the_client_waits(stand: Stand) -> None:
    store = StoreThatLeaves(JobPolicy())
    app = stand.app_with(store=store, events=MemoryEvents(store))
    async with stand.client(stand.key("alice"), app) as client:
        response = await client.post("/v1/jobs", json=PATCHING, headers={"Prefer": "wait=1"})
    job = response.json()
    assert (response.status_code, job["status"], job["queued_ahead"]) == (202, "queued", None)


async def test_a_queued_job_says_how_many_are_ahead_of_it(stand: Stand, client: httpx.AsyncClient) -> None:
    first = await submitted(client)
    response = await client.post("/v1/jobs", json=PATCHING)
    assert response.json()["queued_ahead"] == 1
    second = f"/v1/jobs/{response.json()['id']}"
    stand.succeed(stand.claim(), STORED)
    assert (await client.get(second)).json()["queued_ahead"] == 0
    stand.claim()
    for location in (f"/v1/jobs/{first}", second):
        assert (await client.get(location)).json()["queued_ahead"] is None


async def test_a_full_queue_is_told_apart(stand: Stand) -> None:
    app = stand.app_with(store=MemoryJobStore(JobPolicy(max_queued=0)))
    async with stand.client(stand.key("alice"), app) as client:
        response = await client.post("/v1/jobs", json=PATCHING)
    assert (response.status_code, response.json()["code"]) == (503, "queue_full")
    assert "retry-after" in response.headers


async def test_the_answer_is_json_with_its_times_in_utc(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    stand.succeed(stand.claim(), STORED)
    job = json.loads((await client.get(f"/v1/jobs/{job_id}")).content)
    assert job["created_at"].endswith("Z")
    assert job["expires_at"] > job["finished_at"] >= job["started_at"] >= job["created_at"]
    assert JobStatus(job["status"]).terminal
