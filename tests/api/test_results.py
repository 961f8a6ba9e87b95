"""Results as JSON, safetensors, npz and single tensors."""

import hashlib
import io
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from services.contracts.errors import ErrorCode
from services.contracts.job import JobError
from services.contracts.patching import PatchingResult
from services.contracts.tensor import InlineTensor
from services.jobs.record import StoredResult
from services.jobs.results import store_result
from tests.api.conftest import Stand
from tests.api.specs import PATCHING, attribution_result, features_result, patching_result

pytestmark = pytest.mark.anyio

RESULT = patching_result()
STORED = StoredResult(document=RESULT.model_dump_json())
NAMES = {"effects.mean", "effects.standard_error", "normalized", "pairs.0.effects"}
LARGE = np.arange(40_000, dtype=np.float32).reshape(4, 10_000)
EFFECTS = np.array([[1.0, 2.0], [3.0, np.nan]], dtype=np.float32)


async def finished(stand: Stand, client: httpx.AsyncClient, stored: StoredResult = STORED) -> str:
    job_id: str = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    stand.succeed(stand.claim(), stored)
    return job_id


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html;q=0.9, application/*"])
async def test_a_result_is_json_unless_asked_otherwise(
    stand: Stand, client: httpx.AsyncClient, accept: str | None
) -> None:
    job_id = await finished(stand, client)
    headers = {"Accept": accept} if accept else {}
    response = await client.get(f"/v1/jobs/{job_id}/result", headers=headers)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["vary"] == "Accept"
    assert response.json() == RESULT.model_dump(mode="json")


async def test_safetensors_hold_every_tensor_under_its_path(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await finished(stand, client)
    headers = {"Accept": "application/json;q=0.5, application/vnd.safetensors"}
    response = await client.get(f"/v1/jobs/{job_id}/result", headers=headers)
    assert response.headers["content-type"] == "application/vnd.safetensors"
    tensors = load(response.content)
    assert set(tensors) == NAMES
    np.testing.assert_array_equal(tensors["effects.mean"], EFFECTS)


async def test_npz_holds_every_tensor_under_its_path(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await finished(stand, client)
    response = await client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "application/x-npz"})
    assert response.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(response.content), allow_pickle=False) as tensors:
        assert set(tensors) == NAMES
        np.testing.assert_array_equal(tensors["pairs.0.effects"], EFFECTS)


@pytest.mark.parametrize("result", [attribution_result(), features_result()])
async def test_every_kind_of_result_has_every_representation(
    stand: Stand, client: httpx.AsyncClient, result: Any
) -> None:
    job_id = await finished(stand, client, StoredResult(document=result.model_dump_json()))
    for accept in ("application/json", "application/vnd.safetensors", "application/x-npz"):
        response = await client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": accept})
        assert (response.status_code, response.headers["content-type"]) == (200, accept)


def with_a_large_tensor() -> PatchingResult:
    """A result one of whose tensors is too large to travel inside JSON."""
    return RESULT.model_copy(update={"normalized": InlineTensor.of(LARGE, ("layer", "position"))})


async def test_a_large_tensor_comes_by_its_href(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    stored = store_result(stand.blobs, job_id, 1, with_a_large_tensor())
    stand.succeed(stand.claim(), stored)
    tensor = (await client.get(f"/v1/jobs/{job_id}")).json()["result"]["normalized"]
    assert tensor["encoding"] == "external"
    response = await client.get(tensor["href"])
    assert response.headers["content-type"] == "application/octet-stream"
    assert hashlib.sha256(response.content).hexdigest() == tensor["sha256"]
    np.testing.assert_array_equal(np.frombuffer(response.content, "<f4").reshape(tensor["shape"]), LARGE)
    whole = await client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "application/vnd.safetensors"})
    np.testing.assert_array_equal(load(whole.content)["normalized"], LARGE)
    assert set(load(whole.content)) == NAMES


async def test_a_tensor_that_the_result_lacks_is_not_found(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await finished(stand, client)
    response = await client.get(f"/v1/jobs/{job_id}/tensors/nothing")
    assert (response.status_code, response.json()["code"]) == (404, "tensor_not_found")


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*, */*;q=0", "nonsense"])
async def test_what_is_not_offered_is_not_acceptable_and_names_what_is(
    stand: Stand, client: httpx.AsyncClient, accept: str
) -> None:
    job_id = await finished(stand, client)
    response = await client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": accept})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert "application/vnd.safetensors" in response.json()["detail"]


@pytest.mark.parametrize("path", ["result", "tensors/effects"])
async def test_a_result_asked_for_too_early_is_a_conflict(stand: Stand, client: httpx.AsyncClient, path: str) -> None:
    job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    for _ in ("queued", "running"):
        response = await client.get(f"/v1/jobs/{job_id}/{path}")
        assert (response.status_code, response.json()["code"]) == (409, "job_unfinished")
        if stand.store.depth("default"):
            stand.claim()


async def test_a_failed_job_has_no_result_and_says_why(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    stand.fail(stand.claim(), JobError(code=ErrorCode.OUT_OF_MEMORY, message="too large"))
    response = await client.get(f"/v1/jobs/{job_id}/result")
    assert (response.status_code, response.json()["code"]) == (409, "job_without_result")
    assert "out_of_memory" in response.json()["detail"]


async def test_a_cancelled_job_has_no_result(client: httpx.AsyncClient) -> None:
    job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    await client.post(f"/v1/jobs/{job_id}/cancel")
    response = await client.get(f"/v1/jobs/{job_id}/result")
    assert (response.status_code, response.json()["code"]) == (409, "job_without_result")


async def test_a_lost_blob_is_gone_for_the_result_and_null_in_the_job(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await finished(stand, client, StoredResult(document_blob=f"job_{'b' * 26}/1/{'0' * 32}"))
    response = await client.get(f"/v1/jobs/{job_id}/result")
    assert (response.status_code, response.json()["code"]) == (410, "result_lost")
    assert (await client.get(f"/v1/jobs/{job_id}")).json()["result"] is None
