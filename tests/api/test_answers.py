"""A job that was asked before is answered at once with the result that is there."""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest

from services.contracts.errors import ErrorCode, Unavailable
from services.contracts.tensor import InlineTensor
from services.jobs.cache import fingerprint
from services.jobs.memory import MemoryBlobs
from services.jobs.ports import WorkerState
from services.jobs.record import Claim, StoredResult, Succeeded
from services.jobs.results import store_result
from services.tenants.keys import Scope, new_key
from tests.api.conftest import POOL, Stand
from tests.api.specs import FEATURES, PATCHING, features_result, patching_result

pytestmark = pytest.mark.anyio

RUNNER = "this code on this machine"
LARGE = np.arange(40_000, dtype=np.float32).reshape(4, 10_000)


@pytest.fixture(autouse=True)
def _a_worker_lives(stand: Stand) -> None:
    announce(stand, "w1", RUNNER)


def announce(stand: Stand, worker: str, runner: str | None) -> None:
    stand.workers.announce(WorkerState(worker, POOL, {}, runner), ttl_s=60)


def run(stand: Stand, stored: StoredResult | None = None, runner: str = RUNNER) -> Claim:
    """The next job, from its claim to its result, by a worker that computes as `runner`."""
    claim, catalogue = stand.claim(), stand.services.catalogue
    sae_id = claim.spec.sae_id()
    computed = fingerprint(runner, catalogue.model(claim.spec.model), catalogue.sae(sae_id) if sae_id else None)
    stored = stored or StoredResult(document=patching_result().model_dump_json())
    assert stand.store.finish(claim, Succeeded(stored, computed))
    return claim


async def asked_and_run(stand: Stand, client: httpx.AsyncClient, body: dict[str, Any] = PATCHING) -> str:
    posted = await client.post("/v1/jobs", json=body)
    assert posted.status_code == 202
    run(stand)
    job_id: str = posted.json()["id"]
    return job_id


async def test_the_same_job_again_is_answered_at_once_with_the_same_result(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    first_id = await asked_and_run(stand, client)
    first = (await client.get(f"/v1/jobs/{first_id}")).json()
    rings = stand.doorbell.waiting(POOL)
    again = await client.post("/v1/jobs", json=PATCHING | {"label": "again"})
    job = again.json()
    assert (again.status_code, again.headers["location"]) == (200, f"/v1/jobs/{job['id']}")
    assert "idempotency-replayed" not in again.headers
    assert job["id"] != first_id
    assert (job["status"], job["cached"], job["attempt"], job["label"]) == ("succeeded", True, 0, "again")
    assert job["result"] == first["result"]
    assert (first["cached"], first["attempt"]) == (False, 1)
    assert (stand.store.depth(POOL), stand.doorbell.waiting(POOL)) == (0, rings)
    assert (await client.get(f"/v1/jobs/{job['id']}")).json() == job
    assert (await client.get(f"/v1/jobs/{job['id']}/result")).json() == first["result"]
    assert [job["cached"] for job in (await client.get("/v1/jobs")).json()["jobs"]] == [True, False]


async def test_the_events_of_an_answered_job_are_its_end(stand: Stand, client: httpx.AsyncClient) -> None:
    await asked_and_run(stand, client)
    job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    events = (await client.get(f"/v1/jobs/{job_id}/events")).text
    assert events.count("event:") == 1
    assert "event: succeeded" in events
    assert '"cached":true' in events


async def test_a_result_with_external_tensors_is_the_new_jobs_own(stand: Stand, client: httpx.AsyncClient) -> None:
    first = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    result = patching_result().model_copy(update={"normalized": InlineTensor.of(LARGE, ("layer", "position"))})
    run(stand, store_result(stand.blobs, first, 1, result))
    job = (await client.post("/v1/jobs", json=PATCHING)).json()
    assert job["cached"]
    href = job["result"]["normalized"]["href"]
    assert href.startswith(f"/v1/jobs/{job['id']}/")
    assert (await client.delete(f"/v1/jobs/{first}")).status_code == 204
    raw = await client.get(href)
    np.testing.assert_array_equal(np.frombuffer(raw.content, dtype="<f4").reshape(LARGE.shape), LARGE)


async def test_a_job_that_wants_no_cache_neither_takes_a_result_nor_leaves_one(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    alone = PATCHING | {"cache": False}
    await asked_and_run(stand, client, alone)
    assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202
    run(stand)
    assert (await client.post("/v1/jobs", json=alone)).status_code == 202
    assert (await client.post("/v1/jobs", json=PATCHING)).json()["cached"]


async def test_a_deleted_job_answers_no_longer(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await asked_and_run(stand, client)
    await client.delete(f"/v1/jobs/{job_id}")
    assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202


async def test_a_result_whose_blob_is_lost_is_computed_again(stand: Stand, client: httpx.AsyncClient) -> None:
    first = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    result = patching_result().model_copy(update={"normalized": InlineTensor.of(LARGE, ("layer", "position"))})
    run(stand, store_result(stand.blobs, first, 1, result))
    stand.blobs.delete(first)
    assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202
    run(stand)
    assert (await client.post("/v1/jobs", json=PATCHING)).json()["cached"], "the new result takes its place"


async def test_without_a_worker_nothing_is_answered_or_kept(stand: Stand, client: httpx.AsyncClient) -> None:
    await asked_and_run(stand, client)
    stand.workers.retire("w1")
    assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202
    run(stand, StoredResult(document="{}"))
    announce(stand, "w1", RUNNER)
    answer = await client.post("/v1/jobs", json=PATCHING)
    assert answer.json()["result"] == patching_result().model_dump(mode="json"), "the first one's"


@pytest.mark.parametrize("other", ["other code", None])
async def test_workers_that_compute_otherwise_end_the_answers(
    stand: Stand, client: httpx.AsyncClient, other: str | None
) -> None:
    await asked_and_run(stand, client)
    announce(stand, "w2", other)
    assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202
    stand.workers.retire("w1")
    assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202


async def test_a_result_of_another_worker_than_was_there_when_it_was_asked_is_not_kept(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    await client.post("/v1/jobs", json=PATCHING)
    run(stand, runner="other code")
    assert (await client.post("/v1/jobs", json=PATCHING)).status_code == 202


async def test_what_another_tenant_asked_does_not_show(stand: Stand, client: httpx.AsyncClient) -> None:
    await asked_and_run(stand, client)
    async with stand.client(stand.key("bob")) as bob:
        his = await bob.post("/v1/jobs", json=PATCHING)
    assert (his.status_code, his.json()["cached"]) == (202, False)
    async with stand.client(stand.key("alice")) as hers:
        assert (await hers.post("/v1/jobs", json=PATCHING)).json()["cached"], "all keys of an owner see the same"


async def test_the_work_of_a_lookup_is_the_same_whatever_another_tenant_asked(stand: Stand) -> None:
    """What takes no more steps takes no more time: the store is asked for an entry that is Bob's alone."""
    asked: list[str] = []

    class Listening:
        def find(self, job: Any, idempotency: Any = None) -> None:
            asked.append(job.ties.cache_entry)

    app = stand.app_with(results=Listening())
    for owner in ("alice", "bob", "alice"):
        async with stand.client(stand.key(owner), app) as client:
            await client.post("/v1/jobs", json=PATCHING)
    alices, bobs, alices_again = asked
    assert alices == alices_again != bobs


async def test_an_operator_may_share_results_among_tenants(stand: Stand) -> None:
    app = stand.app_with(share_results=True)
    async with stand.client(stand.key("alice"), app) as alice, stand.client(stand.key("bob"), app) as bob:
        first = (await alice.post("/v1/jobs", json=PATCHING | {"label": "hers"})).json()["id"]
        run(stand)
        job = (await bob.post("/v1/jobs", json=PATCHING)).json()
        assert (job["cached"], job["label"]) == (True, None)
        assert (await alice.delete(f"/v1/jobs/{first}")).status_code == 204
        assert (await bob.get(f"/v1/jobs/{job['id']}")).json() == job
        assert (await alice.get(f"/v1/jobs/{job['id']}")).status_code == 404


async def test_a_model_withdrawn_from_a_key_is_refused_although_the_result_is_there(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    await asked_and_run(stand, client)
    plaintext, record = new_key("alice", "of another model", tuple(Scope))
    stand.keys.put(record.model_copy(update={"models": ("tiny-words",)}))
    async with stand.client(plaintext) as narrowed:
        refused = await narrowed.post("/v1/jobs", json=PATCHING)
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")


async def test_a_shared_result_answers_no_key_that_its_model_was_withdrawn_from(stand: Stand) -> None:
    app = stand.app_with(share_results=True)
    async with stand.client(stand.key("alice"), app) as alice:
        await asked_and_run(stand, alice)
    plaintext, record = new_key("bob", "of another model", tuple(Scope))
    async with stand.client(plaintext, app) as bob:
        stand.keys.put(record)
        assert (await bob.post("/v1/jobs", json=PATCHING)).json()["cached"], "while his key may use the model"
        stand.keys.put(record.model_copy(update={"models": ("tiny-words",)}))
        refused = await bob.post("/v1/jobs", json=PATCHING)
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")


async def test_the_sae_and_its_facts_are_part_of_the_question(stand: Stand, client: httpx.AsyncClient) -> None:
    stored = StoredResult(document=features_result().model_dump_json())
    await client.post("/v1/jobs", json=FEATURES)
    run(stand, stored)
    assert (await client.post("/v1/jobs", json=FEATURES)).json()["cached"]
    assert (await client.post("/v1/jobs", json=FEATURES | {"top_k": 4})).status_code == 202


async def test_an_answered_job_is_replayed_under_its_idempotency_key(stand: Stand, client: httpx.AsyncClient) -> None:
    await asked_and_run(stand, client)
    key = {"Idempotency-Key": "run-8"}
    posts = (client.post("/v1/jobs", json=PATCHING, headers=key) for _ in range(20))
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    other = await client.post("/v1/jobs", json=PATCHING | {"label": "x"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


async def test_a_store_of_results_without_room_makes_the_job_run(stand: Stand, client: httpx.AsyncClient) -> None:
    first = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    result = patching_result().model_copy(update={"normalized": InlineTensor.of(LARGE, ("layer", "position"))})
    run(stand, store_result(stand.blobs, first, 1, result))
    full = Full()
    full.by_key = stand.blobs.by_key
    async with stand.client(stand.key("alice"), stand.app_with(blobs=full)) as alice:
        assert (await alice.post("/v1/jobs", json=PATCHING)).status_code == 202


class Full(MemoryBlobs):
    """Takes nothing more."""

    def put(self, key: str, data: bytes) -> None:
        del key, data
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "full")
