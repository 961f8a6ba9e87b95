"""Keys and scopes."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from services.tenants.keys import Scope, new_key
from tests.api.conftest import Stand
from tests.api.specs import PATCHING

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer lensd_x_y",
        "Bearer \xe9",
        "Bearer lensd_aaaaaaaaaaaa_" + "A" * 43,
        "x" * 200,
    ],
)
async def test_a_wrong_key_is_refused_without_saying_why(stand: Stand, authorization: str) -> None:
    async with stand.client(key=None) as anyone:
        response = await anyone.get("/v1/jobs", headers={b"Authorization": authorization.encode("latin-1")})
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert authorization[7:].strip() == "" or authorization[7:] not in json.dumps(response.json(), ensure_ascii=False)


async def test_a_changed_secret_is_refused(stand: Stand) -> None:
    key = stand.key("alice")
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    async with stand.client(changed) as client:
        assert (await client.get("/v1/jobs")).status_code == 401


async def test_an_expired_key_is_refused(stand: Stand) -> None:
    plaintext, record = new_key("alice", "old", tuple(Scope))
    stand.keys.put(record.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)}))
    async with stand.client(plaintext) as client:
        assert (await client.get("/v1/jobs")).status_code == 401


async def test_a_key_that_may_only_read_makes_cancels_and_deletes_nothing(stand: Stand) -> None:
    async with stand.client(stand.key("alice")) as client:
        job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    async with stand.client(stand.key("alice", Scope.READ)) as reader:
        assert (await reader.get(f"/v1/jobs/{job_id}")).status_code == 200
        for response in (
            await reader.post("/v1/jobs", json=PATCHING),
            await reader.post(f"/v1/jobs/{job_id}/cancel"),
            await reader.delete(f"/v1/jobs/{job_id}"),
        ):
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
            assert "'jobs'" in response.json()["detail"]


async def test_a_key_that_may_only_make_jobs_reads_nothing(stand: Stand) -> None:
    async with stand.client(stand.key("alice", Scope.JOBS)) as client:
        assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202
        assert (await client.get("/v1/jobs")).status_code == 403


async def test_two_keys_of_one_owner_share_their_jobs(stand: Stand) -> None:
    async with stand.client(stand.key("alice")) as one, stand.client(stand.key("alice")) as other:
        job_id = (await one.post("/v1/jobs", json=PATCHING)).json()["id"]
        assert (await other.get(f"/v1/jobs/{job_id}")).status_code == 200


async def test_a_wrong_key_is_refused_before_its_body_is_read(stand: Stand) -> None:
    async with stand.client(key=None) as anyone:
        headers = {"Content-Type": "application/json"}
        response = await anyone.post("/v1/jobs", content=b"{" * 100, headers=headers)
    assert response.status_code == 401
