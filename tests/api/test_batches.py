"""Batches over HTTP: posted, validated, run, followed, cancelled, deleted; their results as lines."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from api.batch_intake import GatewayIntake
from services.batches.ids import job_id_of
from services.batches.keeper import Keeper
from services.batches.work import BatchWork
from services.contracts.errors import ErrorCode, Unavailable
from services.contracts.job import JobError
from services.jobs.ids import new_blob_key
from services.jobs.memory import MemoryBlobs
from services.jobs.record import StoredResult
from services.tenants.keys import Scope, new_key
from services.tenants.limits import KeyLimits
from tests.api.conftest import POOL, Stand
from tests.api.specs import ATTRIBUTION, FEATURES, PATCHING, patching_result

pytestmark = pytest.mark.anyio

JSONL = {"Content-Type": "application/jsonl"}
DOCUMENT = patching_result().model_dump_json()
BAD_JOB = {**PATCHING, "method": {"type": "activation_patching", "site": "resid_pre", "layers": [31]}}


def jsonl(*lines: Any) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def line(custom_id: str, job: Any = PATCHING) -> dict[str, Any]:
    return {"custom_id": custom_id, "job": job}


class Keeping:
    """The keeper of the gateway under test, its turns in the test's hand."""

    def __init__(self, stand: Stand, window: int = 2_000) -> None:
        self.stand = stand
        intake = GatewayIntake(stand.services, 20_000)
        work = BatchWork(stand.services.batches, stand.services.blobs, intake, window)
        self.keeper = Keeper(stand.services.batches, work, rest=0)

    def keep(self) -> None:
        while self.keeper.turn():
            pass

    def run(self, jobs: int) -> None:
        for _ in range(jobs):
            self.stand.succeed(self.stand.claim(), StoredResult(document=DOCUMENT))


@pytest.fixture
def keeping(stand: Stand) -> Keeping:
    return Keeping(stand)


async def post(client: httpx.AsyncClient, *lines: Any, query: str = "", **headers: str) -> str:
    response = await client.post(f"/v1/batches{query}", content=jsonl(*lines), headers=JSONL | headers)
    assert response.status_code == 202, response.text
    batch_id: str = response.json()["id"]
    return batch_id


async def batch(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    response = await client.get(f"/v1/batches/{batch_id}")
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


async def results(client: httpx.AsyncClient, batch_id: str, after: int = 0) -> list[dict[str, Any]]:
    response = await client.get(f"/v1/batches/{batch_id}/results", params={"after": after})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonl")
    return [json.loads(each) for each in response.content.splitlines()]


async def test_a_batch_is_validated_runs_and_ends(client: httpx.AsyncClient, keeping: Keeping) -> None:
    upload = jsonl(line("a"), line("b", ATTRIBUTION), line("c", FEATURES))
    posted = await client.post("/v1/batches?label=nightly", content=upload, headers=JSONL)
    assert posted.status_code == 202
    accepted = posted.json()
    assert posted.headers["location"] == f"/v1/batches/{accepted['id']}"
    assert (accepted["status"], accepted["label"], accepted["on_invalid"]) == ("validating", "nightly", "refuse")
    assert accepted["counts"]["total"] == accepted["counts"]["waiting"] == 3
    keeping.keep()
    running = await batch(client, accepted["id"])
    assert (running["status"], running["counts"]["validated"], running["counts"]["queued"]) == ("running", 3, 3)
    assert running["token_layers"] > 0
    keeping.run(2)
    keeping.stand.fail(keeping.stand.claim(), JobError(code=ErrorCode.OUT_OF_MEMORY, message="too large"))
    ended = await batch(client, accepted["id"])
    assert (ended["status"], ended["error"], ended["errors"]) == ("ended", None, [])
    counts = {name: count for name, count in ended["counts"].items() if count}
    assert counts == {"total": 3, "validated": 3, "succeeded": 2, "failed": 1}
    assert ended["expires_at"] > ended["finished_at"] >= ended["started_at"]


async def test_results_come_in_the_order_of_the_lines_as_far_as_they_have_ended(
    client: httpx.AsyncClient, stand: Stand, keeping: Keeping
) -> None:
    batch_id = await post(client, line("a"), line("wrong", BAD_JOB), line("b"), line("c"), query="?on_invalid=report")
    assert await results(client, batch_id) == []
    keeping.keep()
    first, second, third = (stand.claim() for _ in range(3))
    assert await results(client, batch_id) == []
    stand.succeed(first, StoredResult(document=DOCUMENT))
    stand.fail(third, JobError(code=ErrorCode.METHOD_FAILED, message="no", correlation_id="x"))
    some = await results(client, batch_id)
    assert [(each["custom_id"], each["status"]) for each in some] == [("a", "succeeded"), ("wrong", "invalid")]
    assert some[0] == {
        "custom_id": "a",
        "status": "succeeded",
        "job_id": first.job.id,
        "result": json.loads(DOCUMENT),
        "error": None,
    }
    assert some[1]["error"]["code"] == "unknown_layer"
    assert some[1]["error"]["pointer"] == "/job/method/layers/0"
    assert (some[1]["job_id"], some[1]["result"]) == (None, None)
    stand.succeed(second, StoredResult(document=DOCUMENT))
    rest = await results(client, batch_id, after=2)
    assert [(each["custom_id"], each["status"]) for each in rest] == [("b", "succeeded"), ("c", "failed")]
    assert rest[1]["error"] == {"code": "method_failed", "message": "no", "pointer": ""}
    assert await results(client, batch_id) == some + rest
    assert await results(client, batch_id, after=4) == await results(client, batch_id, after=10_000) == []


async def test_a_result_in_a_blob_comes_along_and_a_lost_one_says_so(
    client: httpx.AsyncClient, stand: Stand, keeping: Keeping
) -> None:
    batch_id = await post(client, line("a"), line("b"))
    keeping.keep()
    for _ in range(2):
        claim = stand.claim()
        key = new_blob_key(claim.job.id, 1)
        stand.blobs.put(key, DOCUMENT.encode())
        stand.succeed(claim, StoredResult(document_blob=key))
    stand.blobs.delete(job_id_of(batch_id, 1))
    kept, lost = await results(client, batch_id)
    assert (kept["result"], kept["error"]) == (json.loads(DOCUMENT), None)
    assert (lost["status"], lost["result"], lost["error"]["code"]) == ("succeeded", None, "result_lost")


async def test_wrong_lines_fail_the_batch_and_are_all_told(client: httpx.AsyncClient, keeping: Keeping) -> None:
    wrong = [
        line("layer", BAD_JOB),
        b"{not json",
        {"custom_id": "no-job"},
        line("twice"),
        line("", PATCHING),
        line("field", {**PATCHING, "colour": 1}),
        line("long", {**PATCHING, "pairs": PATCHING["pairs"] * 200}),
    ]
    batch_id = await post(client, line("twice"), b"", *wrong)
    keeping.keep()
    failed = await batch(client, batch_id)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "invalid_lines")
    assert failed["error"]["message"].startswith("7 of 8 lines are wrong, and nothing was run")
    assert (failed["counts"]["invalid"], failed["counts"]["cancelled"]) == (7, 1)
    told = [(error["line"], error["custom_id"], error["code"], error["pointer"]) for error in failed["errors"]]
    assert told == [
        (3, "layer", "unknown_layer", "/job/method/layers/0"),
        (4, None, "invalid_json", ""),
        (5, "no-job", "invalid_request", "/job"),
        (6, "twice", "invalid_request", "/custom_id"),
        (7, None, "invalid_request", "/custom_id"),
        (8, "field", "invalid_request", "/job/colour"),
        (9, None, "body_too_large", ""),
    ]
    lines = await results(client, batch_id)
    assert [each["status"] for each in lines] == ["cancelled", *["invalid"] * 7]
    assert keeping.stand.store.depth(POOL) == 0


async def test_a_batch_of_many_wrong_lines_makes_a_short_answer(client: httpx.AsyncClient, keeping: Keeping) -> None:
    batch_id = await post(client, *[line(f"line-{number}", {"kind": "x" * 5_000}) for number in range(1_000)])
    keeping.keep()
    assert len((await client.get(f"/v1/batches/{batch_id}")).content) < 20_000
    assert len(await results(client, batch_id)) == 1_000


@pytest.mark.parametrize("body", [b"", b"\n \n", b"{}\n" * 10_001])
async def test_a_batch_has_at_least_one_line_and_at_most_ten_thousand(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/batches", content=body, headers=JSONL)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "send 1 to 10,000" in response.json()["detail"]


async def test_cancelling_stops_what_has_not_run(client: httpx.AsyncClient, stand: Stand) -> None:
    keeping = Keeping(stand, window=2)
    batch_id = await post(client, *[line(f"line-{number}") for number in range(5)])
    keeping.keep()
    running = stand.claim()
    response = await client.post(f"/v1/batches/{batch_id}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelling")
    keeping.keep()
    stand.succeed(running, StoredResult(document=DOCUMENT))
    ended = await batch(client, batch_id)
    assert (ended["status"], ended["counts"]["succeeded"], ended["counts"]["cancelled"]) == ("ended", 1, 4)
    assert (await client.post(f"/v1/batches/{batch_id}/cancel")).json() == ended
    told = [(each["custom_id"], each["status"], each["job_id"] is not None) for each in await results(client, batch_id)]
    assert told == [
        ("line-0", "succeeded", True),
        ("line-1", "cancelled", True),
        *[(f"line-{number}", "cancelled", False) for number in (2, 3, 4)],
    ]


async def test_deleting_takes_the_jobs_along_once_the_batch_has_ended(
    client: httpx.AsyncClient, stand: Stand, keeping: Keeping
) -> None:
    batch_id = await post(client, line("a"), line("b"))
    refused = await client.delete(f"/v1/batches/{batch_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "batch_unfinished")
    keeping.keep()
    keeping.run(2)
    stand.blobs.put(new_blob_key(job_id_of(batch_id, 1), 1), b"tensors")
    assert (await client.delete(f"/v1/batches/{batch_id}")).status_code == 204
    for path in (f"/v1/batches/{batch_id}", f"/v1/jobs/{job_id_of(batch_id, 0)}"):
        assert (await client.get(path)).status_code == 404
    assert (await client.get("/v1/jobs")).json()["jobs"] == []
    assert (await client.get("/v1/batches")).json() == {"batches": [], "cursor": None}
    assert not stand.blobs.by_key
    keeping.keep()


async def test_a_job_deleted_by_itself_leaves_its_line_to_tell_of_it(
    client: httpx.AsyncClient, keeping: Keeping
) -> None:
    batch_id = await post(client, line("a"), line("b"))
    keeping.keep()
    keeping.run(2)
    assert (await client.delete(f"/v1/jobs/{job_id_of(batch_id, 0)}")).status_code == 204
    first, second = await results(client, batch_id)
    assert (first["status"], first["result"], first["error"]["code"]) == ("succeeded", None, "result_expired")
    assert second["result"] is not None


async def test_jobs_are_listed_by_their_batch(client: httpx.AsyncClient, keeping: Keeping) -> None:
    first, second = await post(client, line("a"), line("b")), await post(client, line("a"))
    await client.post("/v1/jobs", json=PATCHING)
    keeping.keep()
    for batch_id, count in ((first, 2), (second, 1), ("batch_" + "a" * 26, 0)):
        jobs = (await client.get("/v1/jobs", params={"batch": batch_id})).json()["jobs"]
        assert sorted(job["id"] for job in jobs) == sorted(job_id_of(batch_id, index) for index in range(count))


async def test_a_batch_of_someone_else_is_not_there(stand: Stand, client: httpx.AsyncClient, keeping: Keeping) -> None:
    batch_id = await post(client, line("alices-secret"))
    keeping.keep()
    keeping.run(1)
    async with stand.client(stand.key("bob")) as bob:
        for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
            response = await bob.request(method, f"/v1/batches/{batch_id}{path}")
            assert (response.status_code, response.json()["code"]) == (404, "batch_not_found")
            assert "secret" not in response.text
        assert (await bob.get("/v1/batches")).json()["batches"] == []
    for odd in ("x", "job_" + "a" * 26, "batch_" + "a" * 26):
        assert (await client.get(f"/v1/batches/{odd}")).status_code == 404


async def test_reading_needs_one_scope_and_posting_another(stand: Stand, client: httpx.AsyncClient) -> None:
    batch_id = await post(client, line("a"))
    async with stand.client(stand.key("alice", Scope.READ)) as reader:
        assert (await reader.get(f"/v1/batches/{batch_id}")).status_code == 200
        refused = await reader.post("/v1/batches", content=jsonl(line("a")), headers=JSONL)
        assert refused.status_code == (await reader.post(f"/v1/batches/{batch_id}/cancel")).status_code == 403
    async with stand.client(stand.key("alice", Scope.JOBS)) as submitter:
        assert (await submitter.get(f"/v1/batches/{batch_id}")).status_code == 403


async def test_the_models_and_limits_of_the_key_as_it_was_apply_to_every_line(stand: Stand) -> None:
    plaintext, record = new_key("carol", "one model", tuple(Scope))
    narrow = record.model_copy(update={"models": ("tiny-words",), "limits": KeyLimits(daily_token_layers=1)})
    stand.keys.put(narrow)
    keeping = Keeping(stand)
    small = {
        "kind": "activations",
        "model": "tiny-words",
        "prompts": ["the cat sat"],
        "sites": [{"site": "resid_post", "layer": 0}],
    }
    async with stand.client(plaintext) as carol:
        batch_id = await post(carol, line("withheld"), line("over a whole day", small))
        stand.services.keys.delete(record.id)
        keeping.keep()
        stand.keys.put(record)
        errors = (await batch(carol, batch_id))["errors"]
    assert [error["code"] for error in errors] == ["unknown_model", "job_too_large"]


async def test_what_was_accepted_runs_although_its_key_is_revoked(stand: Stand, keeping: Keeping) -> None:
    plaintext, record = new_key("alice", "short-lived", tuple(Scope))
    stand.keys.put(record)
    async with stand.client(plaintext) as alice:
        batch_id = await post(alice, line("a"))
    stand.keys.delete(record.id)
    keeping.keep()
    keeping.run(1)
    async with stand.client(stand.key("alice")) as alice:
        assert (await batch(alice, batch_id))["counts"]["succeeded"] == 1


async def test_the_stored_batch_knows_no_secret(stand: Stand, client: httpx.AsyncClient) -> None:
    stored = stand.services.batches.get(await post(client, line("a")))
    assert stored is not None
    assert (stored.key.secret_sha256, stored.key.retiring) == ("", None)


async def test_the_same_upload_under_the_same_key_makes_one_batch(stand: Stand, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "night-7"}
    upload = jsonl(line("a"))
    answers = await asyncio.gather(
        *(client.post("/v1/batches", content=upload, headers=JSONL | key) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    for query, body in (("", jsonl(line("b"))), ("?on_invalid=report", upload), ("?label=x", upload)):
        refused = await client.post(f"/v1/batches{query}", content=body, headers=JSONL | key)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
    job = await client.post("/v1/jobs", json=PATCHING, headers=key)
    assert job.status_code == 202, "names of batches and of jobs are apart"
    async with stand.client(stand.key("bob")) as bob:
        his = await bob.post("/v1/batches", content=upload, headers=JSONL | key)
    assert his.json()["id"] != answers[0].json()["id"]


async def test_a_repeated_upload_makes_up_for_one_that_was_cut_short(stand: Stand, keeping: Keeping) -> None:
    class Full(MemoryBlobs):
        def put(self, key: str, data: bytes) -> None:
            raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the disk is full")

    key = {"Idempotency-Key": "night-8"}
    plaintext = stand.key("alice")
    async with stand.client(plaintext, stand.app_with(blobs=Full())) as broken:
        refused = await broken.post("/v1/batches", content=jsonl(line("a")), headers=JSONL | key)
        assert refused.status_code == 503
        assert (await broken.get("/v1/batches")).json()["batches"] == []
    async with stand.client(plaintext) as client:
        batch_id = await post(client, line("a"), **key)
        keeping.keep()
        assert (await batch(client, batch_id))["status"] == "running"


async def test_an_owner_has_only_so_many_unfinished_batches(stand: Stand) -> None:
    async with stand.client(stand.key("alice"), stand.app_with(max_batches=1)) as client:
        await post(client, line("a"))
        refused = await client.post("/v1/batches", content=jsonl(line("a")), headers=JSONL)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_batches")
    assert int(refused.headers["retry-after"]) > 0


async def test_batches_are_listed_newest_first_page_by_page(client: httpx.AsyncClient) -> None:
    ids = [await post(client, line("a")) for _ in range(3)]
    first = (await client.get("/v1/batches?limit=2")).json()
    second = (await client.get("/v1/batches", params={"cursor": first["cursor"]})).json()
    assert [each["id"] for each in first["batches"] + second["batches"]] == ids[::-1]
    wrong = await client.get("/v1/batches?cursor=!")
    assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (422, "cursor")


@pytest.mark.parametrize("query", ["?on_invalid=ignore", "?colour=1", "?label=" + "x" * 201])
async def test_a_query_that_is_not_understood_is_refused(client: httpx.AsyncClient, query: str) -> None:
    response = await client.post(f"/v1/batches{query}", content=jsonl(line("a")), headers=JSONL)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


async def test_an_upload_is_lines_and_nothing_else(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/batches", json=line("a"))
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


async def test_a_batch_yields_to_single_jobs(stand: Stand, client: httpx.AsyncClient, keeping: Keeping) -> None:
    await post(client, *[line(f"line-{number}") for number in range(50)])
    keeping.keep()
    async with stand.client(stand.key("bob")) as bob:
        single = (await bob.post("/v1/jobs", json=PATCHING)).json()["id"]
    own = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    assert {stand.claim().job.id, stand.claim().job.id} == {single, own}
    assert stand.claim().job.priority == "batch"
