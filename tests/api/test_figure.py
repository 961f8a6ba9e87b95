"""A job's picture over HTTP."""

import asyncio
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree as Tree

import httpx
import numpy as np
import pytest

from services.contracts.tensor import InlineTensor
from services.jobs.record import StoredResult
from services.jobs.results import store_result
from tests.api.conftest import Stand
from tests.api.specs import PATCHING, attribution_result, features_result, patching_result

pytestmark = pytest.mark.anyio

SVG, PNG = "image/svg+xml", "image/png"
STORED = StoredResult(document=patching_result().model_dump_json())


async def finished(stand: Stand, client: httpx.AsyncClient, stored: StoredResult = STORED) -> str:
    job_id: str = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    stand.succeed(stand.claim(), stored)
    return f"/v1/jobs/{job_id}/figure"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, SVG),
        ("*/*", SVG),
        ("image/*", SVG),
        ("image/png", PNG),
        ("image/svg+xml;q=0.5, image/png", PNG),
        ("image/avif, image/png;q=0.8, */*;q=0.5", PNG),
    ],
)
async def test_a_figure_is_svg_unless_asked_otherwise(
    stand: Stand, client: httpx.AsyncClient, accept: str | None, media_type: str
) -> None:
    url = await finished(stand, client)
    response = await client.get(url, headers={"Accept": accept} if accept else {})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert response.headers["vary"] == "Accept"
    assert response.content.startswith(b"<?xml" if media_type == SVG else b"\x89PNG")


@pytest.mark.parametrize("accept", ["application/json", "image/webp", "image/*;q=0"])
async def test_a_figure_in_no_offered_form_is_not_acceptable(
    stand: Stand, client: httpx.AsyncClient, accept: str
) -> None:
    response = await client.get(await finished(stand, client), headers={"Accept": accept})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert SVG in response.json()["detail"]


@pytest.mark.parametrize("result", [patching_result(), attribution_result(), features_result()])
async def test_every_kind_of_result_has_a_figure(stand: Stand, client: httpx.AsyncClient, result: Any) -> None:
    url = await finished(stand, client, StoredResult(document=result.model_dump_json()))
    assert (await client.get(url)).status_code == 200


async def test_the_svg_may_be_styled_and_may_run_nothing(stand: Stand, client: httpx.AsyncClient) -> None:
    policy = (await client.get(await finished(stand, client))).headers["content-security-policy"]
    assert {"default-src 'none'", "style-src 'unsafe-inline'", "sandbox"} <= set(policy.split("; "))


async def test_tensors_outside_the_document_are_drawn_too(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    effects = InlineTensor.of(np.ones((30, 600)), ("layer", "head"))
    axes = {"layers": tuple(range(30)), "heads": tuple(range(600)), "positions": None}
    result = patching_result().model_copy(update={"effects": effects, "normalized": effects, **axes})
    stored = store_result(stand.blobs, job_id, 1, result)
    assert stored.tensors_blob is not None
    stand.succeed(stand.claim(), stored)
    assert (await client.get(f"/v1/jobs/{job_id}/figure")).status_code == 200


async def test_one_example_can_be_drawn_alone(stand: Stand, client: httpx.AsyncClient) -> None:
    url = await finished(stand, client, StoredResult(document=features_result().model_dump_json()))
    alone = await client.get(url, params={"example": 0})
    assert any("prompt 0 of 1" in (element.text or "") for element in Tree.fromstring(alone.content).iter())


@pytest.mark.parametrize(
    ("example", "code"), [("7", "unknown_example"), ("-1", "invalid_request"), ("x", "invalid_request")]
)
async def test_an_example_that_the_result_lacks_is_a_wrong_parameter(
    stand: Stand, client: httpx.AsyncClient, example: str, code: str
) -> None:
    response = await client.get(await finished(stand, client), params={"example": example})
    assert response.status_code == 422
    (item,) = response.json()["errors"]
    assert (item["parameter"], item["code"]) == ("example", code)


async def test_a_figure_asked_for_too_early_is_a_conflict(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    response = await client.get(f"/v1/jobs/{job_id}/figure")
    assert (response.status_code, response.json()["code"]) == (409, "job_unfinished")


async def test_a_result_with_nothing_to_draw_is_a_conflict(stand: Stand, client: httpx.AsyncClient) -> None:
    silent = features_result()
    prompt = silent.prompts[0].model_copy(update={"top": ()})
    stored = StoredResult(document=silent.model_copy(update={"prompts": (prompt,)}).model_dump_json())
    response = await client.get(await finished(stand, client, stored))
    assert (response.status_code, response.json()["code"]) == (409, "no_figure")


async def test_a_lost_result_is_gone(stand: Stand, client: httpx.AsyncClient) -> None:
    url = await finished(stand, client, StoredResult(document_blob=f"job_{'b' * 26}/1/{'0' * 32}"))
    response = await client.get(url)
    assert (response.status_code, response.json()["code"]) == (410, "result_lost")


async def test_another_owners_figure_is_not_found(stand: Stand, client: httpx.AsyncClient) -> None:
    url = await finished(stand, client)
    async with stand.client(stand.key("mallory")) as stranger:
        response = await stranger.get(url)
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


async def test_figures_asked_for_together_are_all_drawn(stand: Stand, client: httpx.AsyncClient) -> None:
    url = await finished(stand, client)
    answers = await asyncio.gather(*[client.get(url) for _ in range(4)])
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


def test_the_gateway_starts_without_matplotlib() -> None:
    code = "import api.__main__, sys; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
