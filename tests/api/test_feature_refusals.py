"""Jobs on features that cannot run: refused over HTTP with a code and a pointer, and nothing is queued."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.catalogue.catalogue import Catalogue
from services.contracts.sae import SaeFacts
from tests.api.catalogue import CHAT_MODEL, FEATURES, MODEL, SAE
from tests.api.conftest import POOL, Stand
from tests.api.specs import FEATURE_ABLATION, FEATURE_PATCHING, FEATURE_TERMS
from tests.api.specs import FEATURES as FEATURES_JOB

pytestmark = pytest.mark.anyio

DIRECTION = {"type": "direction", "layer": 1, "values": [1.0] * 8}
FEATURE = {"type": "feature", "sae": SAE, "index": 3}
STEERED: dict[str, Any] = {"kind": "generation", "model": MODEL, "prompts": ["John gave"], "steering": [FEATURE]}
ATTRIBUTED = FEATURE_TERMS | {"method": {"type": "feature_attribution", "sae": SAE, "source": "zero"}}
EVALUATED = {"kind": "sae_evaluation", "model": MODEL, "sae": SAE, "prompts": ["John gave the bag"]}

READING = [(FEATURES_JOB, "/sae"), (EVALUATED, "/sae")]
WRITING = [
    (FEATURE_PATCHING, "/method/sae"),
    (FEATURE_ABLATION, "/method/sae"),
    (ATTRIBUTED, "/method/sae"),
    (FEATURE_TERMS, "/method/sae"),
    (STEERED, "/steering/0/sae"),
]


@pytest.fixture(autouse=True)
async def nothing_is_queued(stand: Stand) -> AsyncIterator[None]:
    yield
    assert stand.store.depth(POOL) == 0
    assert stand.doorbell.waiting(POOL) == 0


async def refusals(client: httpx.AsyncClient, job: dict[str, Any]) -> list[tuple[str, str]]:
    """Where a job is refused, and with which code."""
    response = await client.post("/v1/jobs", json=job)
    problem = response.json()
    assert response.status_code == 422, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["code"] == problem["errors"][0]["code"]
    assert all(error["message"] for error in problem["errors"])
    return [(error["pointer"], error["code"]) for error in problem["errors"]]


async def refusals_with(stand: Stand, job: dict[str, Any], **changed: Any) -> list[tuple[str, str]]:
    """The same where the SAE is another one than the catalogue's."""
    facts = SaeFacts.model_validate(stand.services.catalogue.sae(SAE).model_dump() | changed)
    served = Catalogue(stand.services.catalogue.home, stand.services.catalogue.models, {SAE: facts})
    async with stand.client(stand.key("bob"), stand.app_with(catalogue=served)) as client:
        return await refusals(client, job)


@pytest.mark.parametrize(("job", "pointer"), READING + WRITING)
@pytest.mark.parametrize("changed", [{"model": CHAT_MODEL}, {"d_model": 9}, {"layer": 3}])
async def test_an_sae_that_does_not_fit_the_model_is_refused(
    stand: Stand, job: dict[str, Any], pointer: str, changed: dict[str, Any]
) -> None:
    """Of another model, of another width, of a layer that is not there."""
    assert await refusals_with(stand, job, **changed) == [(pointer, "sae_mismatch")]


@pytest.mark.parametrize(("job", "pointer"), WRITING)
@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
async def test_features_of_an_sae_that_scales_each_token_are_not_written(
    stand: Stand, job: dict[str, Any], pointer: str, normalization: str
) -> None:
    assert await refusals_with(stand, job, normalize_activations=normalization) == [(pointer, "sae_mismatch")]


@pytest.mark.parametrize(("job", "pointer"), READING + WRITING)
async def test_an_sae_that_is_not_served_is_refused_where_it_is_named(
    client: httpx.AsyncClient, job: dict[str, Any], pointer: str
) -> None:
    unknown = json.loads(json.dumps(job).replace(SAE, "no-such-sae"))
    assert await refusals(client, unknown) == [(pointer, "unknown_sae")]


def method(job: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return job | {"method": job["method"] | changed}


@pytest.mark.parametrize(
    ("job", "pointer"),
    [
        (FEATURES_JOB | {"features": [0, FEATURES]}, "/features/1"),
        (FEATURES_JOB | {"features": [FEATURES], "contrast": {"baseline": ["Mary"]}}, "/features/0"),
        (FEATURES_JOB | {"features": [9_999_999], "search": [{"positions": [0]}]}, "/features/0"),
        (method(FEATURE_PATCHING, features=[FEATURES, 3]), "/method/features/0"),
        (method(FEATURE_ABLATION, features=[3, FEATURES]), "/method/features/1"),
        (STEERED | {"steering": [FEATURE, FEATURE | {"index": FEATURES}]}, "/steering/1/index"),
        (STEERED | {"steering": [FEATURE | {"index": FEATURES, "operation": "project_out"}]}, "/steering/0/index"),
    ],
)
async def test_a_feature_that_the_sae_does_not_have_is_refused_where_it_stands(
    client: httpx.AsyncClient, job: dict[str, Any], pointer: str
) -> None:
    assert await refusals(client, job) == [(pointer, "unknown_feature")]


@pytest.mark.parametrize(
    ("job", "pointer"),
    [
        (FEATURES_JOB | {"features": [-1]}, "/features/0"),
        (method(FEATURE_PATCHING, features=[-1]), "/method/features/0"),
        (STEERED | {"steering": [FEATURE | {"index": -1}]}, "/steering/0/index"),
        (STEERED | {"steering": [FEATURE | {"index": 10**30}]}, "/steering/0/index"),
        (STEERED | {"steering": [FEATURE | {"operation": "ablate", "value": 1.0}]}, "/steering/0/value"),
        (STEERED | {"steering": [FEATURE | {"operation": "project_out", "value": 1.0}]}, "/steering/0/value"),
    ],
)
async def test_a_number_that_no_feature_can_have_is_refused_where_it_stands(
    client: httpx.AsyncClient, job: dict[str, Any], pointer: str
) -> None:
    assert [where for where, _ in await refusals(client, job)] == [pointer]


@pytest.mark.parametrize(
    "changed",
    [
        {"strengths": [1.0, 1e16]},
        {"strengths": [1.0, -1e16], "unit": "mean_norm"},
        {"strengths": [1.0, 1e300], "steering": [FEATURE | {"operation": "clamp", "value": 1e300}]},
        {"strengths": [1.0, 1e15], "steering": [DIRECTION]},
        {"strengths": [1.0, 1e16], "steering": [DIRECTION | {"operation": "clamp", "value": -1.0}]},
    ],
)
async def test_a_strength_that_overflows_is_refused_where_it_stands(
    client: httpx.AsyncClient, changed: dict[str, Any]
) -> None:
    found = await refusals(client, STEERED | changed)
    assert found[-1] == ("/strengths/1", "invalid_request")
    assert all(pointer.startswith("/strengths") for pointer, _ in found)


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"strengths": [1.0, "X"]}, "/strengths/1"),
        ({"steering": [DIRECTION | {"values": [1.0] * 7 + ["X"]}]}, "/steering/0/values/7"),
        ({"steering": [FEATURE | {"value": "X"}]}, "/steering/0/value"),
    ],
)
async def test_a_number_too_large_to_be_one_is_refused_where_it_stands_and_nan_is_no_json(
    client: httpx.AsyncClient, changed: dict[str, Any], pointer: str
) -> None:
    body = json.dumps(STEERED | changed)
    headers = {"Content-Type": "application/json"}
    for number in ("1e999", "-1e999"):
        response = await client.post("/v1/jobs", content=body.replace('"X"', number), headers=headers)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
        assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    for number in ("NaN", "Infinity", "-Infinity"):
        response = await client.post("/v1/jobs", content=body.replace('"X"', number), headers=headers)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_json")
        assert number in response.json()["detail"]
