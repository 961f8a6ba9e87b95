"""Jobs that cannot run are refused before they are queued."""

from typing import Any

import httpx
import pytest

from tests.api.catalogue import MODEL
from tests.api.conftest import POOL, Stand
from tests.api.specs import ATTRIBUTION, PATCHING

pytestmark = pytest.mark.anyio


async def test_what_is_wrong_with_a_job_is_refused_before_it_is_queued(stand: Stand, client: httpx.AsyncClient) -> None:
    method = {"type": "activation_patching", "site": "resid_pre", "layers": [0, 3]}
    response = await client.post("/v1/jobs", json={**PATCHING, "method": method})
    problem = response.json()
    assert response.status_code == 422
    assert problem["code"] == "unknown_layer"
    assert problem["errors"] == [
        {
            "pointer": "/method/layers/1",
            "parameter": None,
            "code": "unknown_layer",
            "message": "layer 3 does not exist: tiny-bpe has layers 0..2",
        }
    ]
    assert stand.store.depth(POOL) == 0
    assert stand.doorbell.waiting(POOL) == 0


@pytest.mark.parametrize(
    ("changed", "code", "pointer"),
    [
        ({"model": "gpt-5"}, "unknown_model", "/model"),
        (
            {"pairs": [{"clean": "John", "corrupted": "John and", "answer": 1, "foil": 2}]},
            "unequal_lengths",
            "/pairs/0",
        ),
        ({"pairs": [{"clean": "a", "corrupted": "b", "answer": " Mary and", "foil": 2}]}, "invalid_answer", None),
        (
            {"pairs": [{"clean": "x" * 5_000, "corrupted": "y" * 5_000, "answer": 1, "foil": 2}]},
            "prompt_too_long",
            None,
        ),
        (
            {"pairs": [{"clean": "a", "corrupted": "b", "answer": 99_999, "foil": 2}]},
            "unknown_token",
            "/pairs/0/answer",
        ),
        ({"method": {"type": "activation_patching", "site": "mlp_out"}}, "unknown_site", "/method/site"),
        ({"method": {"type": "activation_patching", "site": "z", "heads": [4]}}, "unknown_head", "/method/heads/0"),
        ({"metric": {"type": "logit_diff", "position": 500}}, "unknown_position", "/metric/position"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_with_a_code_and_a_pointer(
    client: httpx.AsyncClient, changed: dict[str, Any], code: str, pointer: str | None
) -> None:
    problem = (await client.post("/v1/jobs", json={**PATCHING, **changed})).json()
    assert (problem["status"], problem["code"]) == (422, code)
    assert pointer is None or problem["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("name", ["two words", "\u0085", "\ufeff", "a\u2003b", "\x00"])
async def test_a_name_of_a_position_with_a_space_of_any_kind_is_refused(client: httpx.AsyncClient, name: str) -> None:
    pair = {**PATCHING["pairs"][0], "positions": {name: 1}}
    problem = (await client.post("/v1/jobs", json={**PATCHING, "pairs": [pair]})).json()
    assert problem["code"] == "invalid_request"
    assert problem["detail"].endswith(r"expected text that matches ^[^\s]+$")


@pytest.mark.parametrize("inputs", [{}, {"examples": ATTRIBUTION["examples"]}, {"examples": [], "pairs": []}])
@pytest.mark.parametrize("method", ["attribution_patching", "edge_attribution_patching"])
async def test_a_method_without_inputs_of_its_kind_is_told_so(
    client: httpx.AsyncClient, method: str, inputs: dict[str, Any]
) -> None:
    job = {"kind": "attribution", "model": MODEL, "method": {"type": method}, **inputs}
    response = await client.post("/v1/jobs", json=job)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/pairs")


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{]", 400, "invalid_json"),
        (b'{"kind": NaN}', 400, "invalid_json"),
        (b'{"kind": "\xff"}', 400, "invalid_json"),
        (b"[" * 50, 400, "body_too_deep"),
        (b"{}", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
    ],
)
async def test_a_body_that_is_no_job_gets_its_own_problem(
    client: httpx.AsyncClient, raw: bytes, status: int, code: str
) -> None:
    response = await client.post("/v1/jobs", content=raw, headers={"Content-Type": "application/json"})
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["status"], response.json()["code"]) == (status, status, code)
