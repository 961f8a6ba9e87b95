"""Looking after keys over HTTP, and the rates that keys are held to."""

import json
from collections.abc import AsyncIterator
from datetime import datetime

import httpx
import pytest
from pydantic import TypeAdapter

from services.catalogue.resolve import Limits, resolve
from services.contracts.job import JobSpec
from services.jobs.limits import OwnerLimits
from services.jobs.policy import JobPolicy
from services.jobs.record import Size, StoredResult
from services.tenants.keys import Scope, new_key
from services.tenants.limits import SLOWEST, KeyLimits, Rate, TenantLimits
from tests.api.conftest import POOL, WORKER, Stand
from tests.api.specs import PATCHING, patching_result

pytestmark = pytest.mark.anyio

MAX_QUEUED = JobPolicy().max_queued


@pytest.fixture
async def admin(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    async with stand.client(stand.key("root", Scope.ADMIN)) as client:
        yield client


async def test_a_made_key_works_and_its_secret_is_shown_once(stand: Stand, admin: httpx.AsyncClient) -> None:
    asked = {"owner": "evals", "name": "nightly", "models": ["tiny-bpe"], "limits": {"burst": 7}, "days": 2}
    created = await admin.post("/v1/admin/keys", json=asked)
    assert created.status_code == 201
    plaintext, key = created.json()["api_key"], created.json()["key"]
    assert (key["owner"], key["scopes"], key["models"], key["last_used_at"]) == (
        "evals",
        ["jobs", "read"],
        ["tiny-bpe"],
        None,
    )
    async with stand.client(plaintext) as client:
        answer = await client.post("/v1/jobs", json=PATCHING)
    assert answer.status_code == 202
    assert answer.headers["ratelimit-policy"].startswith('"requests";q=7;')
    listed = (await admin.get("/v1/admin/keys")).json()["keys"]
    one = (await admin.get(f"/v1/admin/keys/{key['id']}")).json()
    assert one in listed
    assert datetime.fromisoformat(one["last_used_at"])
    for answer in (await admin.get("/v1/admin/keys"), await admin.get("/v1/admin/audit")):
        assert plaintext.split("_", 2)[2] not in answer.text
        assert "sha256" not in answer.text


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ({}, "/owner"),
        ({"owner": "a:b"}, "/owner"),
        ({"owner": "a", "scopes": []}, "/scopes"),
        ({"owner": "a", "scopes": ["root"]}, "/scopes/0"),
        ({"owner": "a", "days": 0}, "/days"),
        ({"owner": "a", "limits": {"queue_share": 2}}, "/limits/queue_share"),
        ({"owner": "a", "limits": {"requests_per_second": 1e-300}}, "/limits/requests_per_second"),
        ({"owner": "a", "secret": "mine"}, "/secret"),
    ],
)
async def test_a_wrong_wish_for_a_key_is_refused(admin: httpx.AsyncClient, asked: object, pointer: str) -> None:
    answer = await admin.post("/v1/admin/keys", json=asked)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_a_rotated_key_changes_over_and_a_revoked_one_is_refused_at_once(
    stand: Stand, admin: httpx.AsyncClient
) -> None:
    first = stand.key("evals", Scope.READ)
    key_id = first.split("_")[1]
    rotated = await admin.post(f"/v1/admin/keys/{key_id}/rotate", json={"overlap_s": 60})
    assert rotated.status_code == 200
    assert rotated.json()["key"]["retiring_until"] is not None
    for plaintext in (first, rotated.json()["api_key"]):
        async with stand.client(plaintext) as client:
            assert (await client.get("/v1/models")).status_code == 200
    assert (await admin.delete(f"/v1/admin/keys/{key_id}")).status_code == 204
    for plaintext in (first, rotated.json()["api_key"]):
        async with stand.client(plaintext, stand.app_with()) as client:
            assert (await client.get("/v1/models")).status_code == 401
    again = await admin.delete(f"/v1/admin/keys/{key_id}")
    assert (again.status_code, again.json()["code"]) == (404, "key_not_found")


async def test_the_last_admin_key_cannot_revoke_itself(stand: Stand, admin: httpx.AsyncClient) -> None:
    (own,) = stand.keys.list()
    refused = await admin.delete(f"/v1/admin/keys/{own.id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin_key")


async def test_the_log_names_who_did_what_in_which_request(stand: Stand, admin: httpx.AsyncClient) -> None:
    (own,) = stand.keys.list()
    created = await admin.post("/v1/admin/keys", json={"owner": "evals"}, headers={"X-Request-Id": "mine-1"})
    await admin.delete(f"/v1/admin/keys/{created.json()['key']['id']}")
    first = (await admin.get("/v1/admin/audit", params={"limit": 1})).json()
    second = (await admin.get("/v1/admin/audit", params={"limit": 1, "cursor": first["cursor"]})).json()
    assert first["entries"][0]["action"] == "key_revoked"
    (entry,) = second["entries"]
    assert (entry["action"], entry["actor"], entry["request_id"]) == ("key_created", own.id, "mine-1")
    assert second["cursor"] is None
    wrong = await admin.get("/v1/admin/audit", params={"cursor": "nonsense"})
    assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (422, "cursor")


async def test_an_attempt_to_administer_is_put_on_record_once_in_a_while(
    stand: Stand, admin: httpx.AsyncClient
) -> None:
    plaintext = stand.key("mallory", Scope.JOBS, Scope.READ)
    async with stand.client(plaintext) as mallory:
        answers = [await mallory.delete("/v1/admin/keys/abcdefghij23") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [403, 403, 403]
    (entry,) = (await admin.get("/v1/admin/audit")).json()["entries"]
    assert (entry["action"], entry["actor"]) == ("admin_refused", plaintext.split("_")[1])
    assert entry["target"] == "DELETE /v1/admin/keys/abcdefghij23"
    assert entry["request_id"] == answers[0].headers["x-request-id"]


async def test_a_key_over_its_rate_is_told_when_to_come_back_and_others_are_not_held_up(stand: Stand) -> None:
    app = stand.app_with(tenants=TenantLimits(rate=Rate(per_second=0.1, burst=2)))
    async with stand.client(stand.key("alice"), app) as alice, stand.client(stand.key("bob"), app) as bob:
        answers = [await alice.get("/v1/models") for _ in range(3)]
        assert (await bob.get("/v1/models")).status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=2;w=20'
    assert answers[0].headers["ratelimit"] == '"requests";r=1;t=10'
    refused = answers[2]
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "rate_limited"
    assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert 1 <= int(refused.headers["retry-after"]) <= 10


async def test_the_slowest_key_with_the_largest_burst_is_no_trouble(stand: Stand, admin: httpx.AsyncClient) -> None:
    limits = {"requests_per_second": SLOWEST, "burst": 1_000_000}
    made = await admin.post("/v1/admin/keys", json={"owner": "a", "limits": limits})
    async with stand.client(made.json()["api_key"]) as client:
        answers = [await client.get("/v1/models") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].headers["ratelimit-policy"] == '"requests";q=1000000;w=1000000000'


async def test_a_refused_request_says_how_the_key_stands_too(stand: Stand) -> None:
    async with stand.client(stand.key("alice")) as alice:
        answer = await alice.get("/v1/models/absent")
    assert answer.status_code == 404
    assert "ratelimit" in answer.headers


async def test_an_owner_with_too_many_jobs_is_refused_and_another_is_not(stand: Stand) -> None:
    app = stand.app_with(tenants=TenantLimits(jobs=OwnerLimits(jobs=1)))
    async with stand.client(stand.key("alice"), app) as alice, stand.client(stand.key("bob"), app) as bob:
        answers = [await client.post("/v1/jobs", json=PATCHING) for client in (alice, alice, bob)]
    assert [answer.status_code for answer in answers] == [202, 429, 202]
    assert answers[1].json()["code"] == "too_many_jobs"
    assert int(answers[1].headers["retry-after"]) >= 1


async def test_a_key_made_with_a_share_of_the_queue_is_refused_over_it_until_a_job_starts(
    stand: Stand, admin: httpx.AsyncClient
) -> None:
    made = await admin.post("/v1/admin/keys", json={"owner": "alice", "limits": {"queue_share": 2 / MAX_QUEUED}})
    async with stand.client(made.json()["api_key"]) as alice, stand.client(stand.key("bob")) as bob:
        answers = [await client.post("/v1/jobs", json=PATCHING) for client in (alice, alice, alice, bob)]
        stand.claim()
        once_more = await alice.post("/v1/jobs", json=PATCHING)
    assert [answer.status_code for answer in answers] == [202, 202, 429, 202]
    assert (answers[2].json()["code"], "share of the queue" in answers[2].json()["detail"]) == ("too_many_jobs", True)
    assert int(answers[2].headers["retry-after"]) >= 1
    assert once_more.status_code == 202


async def test_a_key_made_with_a_bound_of_running_jobs_has_the_others_wait_and_lets_other_owners_pass(
    stand: Stand, admin: httpx.AsyncClient
) -> None:
    made = await admin.post("/v1/admin/keys", json={"owner": "alice", "limits": {"running": 1}})
    async with stand.client(made.json()["api_key"]) as alice, stand.client(stand.key("bob")) as bob:
        answers = [await client.post("/v1/jobs", json=PATCHING) for client in (alice, alice, bob)]
        assert [answer.status_code for answer in answers] == [202, 202, 202]
        first, second, other = (answer.json()["id"] for answer in answers)
        running = [stand.claim(), stand.claim()]
        assert {claim.job.id for claim in running} == {first, other}
        assert stand.store.claim(POOL, WORKER, tuple(Size)) is None
        assert (await alice.get(f"/v1/jobs/{second}")).json()["status"] == "queued"
        (ended,) = (claim for claim in running if claim.job.id == first)
        stand.succeed(ended, StoredResult(document=patching_result().model_dump_json()))
        assert stand.claim().job.id == second


async def test_work_over_the_days_quota_is_refused_until_midnight_and_never_if_it_is_more_than_a_day(
    stand: Stand,
) -> None:
    plaintext, record = new_key("alice", "small quota", (Scope.JOBS,))
    stand.keys.put(record)
    spec: JobSpec = TypeAdapter(JobSpec).validate_json(json.dumps(PATCHING))
    cost = resolve(spec, stand.services.catalogue, Limits()).cost.token_layers
    async with stand.client(plaintext) as alice:
        assert (await alice.post("/v1/jobs", json=PATCHING)).status_code == 202
        stand.keys.put(record.model_copy(update={"limits": KeyLimits(daily_token_layers=2 * cost - 1)}))
        over = await alice.post("/v1/jobs", json=PATCHING)
        stand.keys.put(record.model_copy(update={"limits": KeyLimits(daily_token_layers=cost - 1)}))
        never = await alice.post("/v1/jobs", json=PATCHING)
    assert (over.status_code, over.json()["code"]) == (429, "quota_exceeded")
    assert str(cost) in over.json()["detail"]
    assert 1 <= int(over.headers["retry-after"]) <= 86_400
    assert (never.status_code, never.json()["code"]) == (422, "job_too_large")
    assert str(cost) in never.json()["detail"]
