"""A client generated from openapi.yaml makes every kind of job and understands every kind of result."""

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from services.jobs.record import StoredResult
from tests.api.catalogue import SAE
from tests.api.conftest import Stand
from tests.api.feature_results import feature_ablation_result, feature_patching_result, feature_terms_result
from tests.api.specs import (
    ABLATION,
    ATTRIBUTION,
    FEATURE_ABLATION,
    FEATURE_PATCHING,
    FEATURE_TERMS,
    FEATURES,
    INTERVENTION,
    PATCHING,
    PATHS,
    ablation_result,
    attribution_result,
    features_result,
    intervention_result,
    patching_result,
    path_patching_result,
)
from tests.sdk import generated_sdk, part

pytestmark = pytest.mark.anyio

KINDS = [
    pytest.param("PatchingSpec", PATCHING, patching_result(), id="patching"),
    pytest.param("PatchingSpec", PATHS, path_patching_result(), id="path patching"),
    pytest.param("PatchingSpec", FEATURE_PATCHING, feature_patching_result(), id="feature patching"),
    pytest.param("AblationSpec", ABLATION, ablation_result(), id="ablation"),
    pytest.param("AblationSpec", FEATURE_ABLATION, feature_ablation_result(), id="feature ablation"),
    pytest.param("InterventionSpec", INTERVENTION, intervention_result(), id="intervention"),
    pytest.param("AttributionSpec", ATTRIBUTION, attribution_result(), id="attribution"),
    pytest.param("AttributionSpec", FEATURE_TERMS, feature_terms_result(), id="direct logit terms of features"),
    pytest.param("FeaturesSpec", FEATURES, features_result(), id="features"),
]


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with generated_sdk(tmp_path_factory.mktemp("sdk")) as package:
        yield package


@pytest.fixture
def client(sdk: ModuleType, stand: Stand) -> Any:
    """The SDK's own client, its requests carried to the application under test."""
    client = sdk.AuthenticatedClient(base_url="http://lensd", token=stand.key("alice"), raise_on_unexpected_status=True)
    headers = {"Authorization": f"Bearer {client.token}"}
    transport = httpx.ASGITransport(stand.app)
    return client.set_async_httpx_client(
        httpx.AsyncClient(base_url="http://lensd", transport=transport, headers=headers)
    )


@pytest.mark.parametrize(("model", "spec", "result"), KINDS)
async def test_the_generated_client_makes_a_job_and_reads_its_result(
    client: Any, stand: Stand, model: str, spec: dict[str, Any], result: Any
) -> None:
    body = getattr(part("models"), model).from_dict(spec)
    assert body.to_dict() == spec
    job = await part("api.jobs.submit_job").asyncio(client=client, body=body)
    assert (type(job).__name__, job.status.value, job.result) == ("JobView", "queued", None)
    stand.succeed(stand.claim(), StoredResult(document=result.model_dump_json()))
    job = await part("api.jobs.get_job").asyncio(job.id, client=client)
    assert type(job.result).__name__ == type(result).__name__
    assert job.result.to_dict() == result.model_dump(mode="json")
    alone = await part("api.jobs.get_job_result").asyncio(job.id, client=client)
    assert alone.to_dict() == job.result.to_dict()


async def test_the_generated_client_understands_problems(client: Any) -> None:
    body = part("models").FeaturesSpec.from_dict({**FEATURES, "model": "gpt-5"})
    problem = await part("api.jobs.submit_job").asyncio(client=client, body=body)
    assert (type(problem).__name__, problem.status, problem.code.value) == ("Problem", 422, "unknown_model")
    assert problem.errors[0].pointer == "/model"


async def test_the_generated_client_lists_jobs_models_and_saes(client: Any) -> None:
    body = part("models").AttributionSpec.from_dict(ATTRIBUTION)
    made = await part("api.jobs.submit_job").asyncio(client=client, body=body)
    listed = await part("api.jobs.list_jobs").asyncio(client=client, status=part("models").JobStatus.QUEUED, limit=5)
    assert [job.id for job in listed.jobs] == [made.id]
    models = await part("api.models.list_models").asyncio(client=client)
    saes = await part("api.saes.list_saes").asyncio(client=client)
    assert {sae.model for sae in saes.saes} <= {model.id for model in models.models}


async def test_the_generated_client_sets_imports_and_exports_labels(sdk: ModuleType, client: Any) -> None:
    routes, models = "api.features", part("models")
    asked = models.LabelRequest.from_dict({"text": "names", "author": "ada"})
    label = await part(f"{routes}.set_feature_label").asyncio(SAE, 3, client=client, body=asked)
    assert (type(label).__name__, label.text, label.shared) == ("FeatureLabel", "names", False)
    # Bytes rather than an open file: httpx sends no files asynchronously.
    lines = part("types").File(payload=b'{"index": 4, "text": "places"}\n')
    done = await part(f"{routes}.import_labels").asyncio(SAE, client=client, body=lines)
    assert (done.stored, done.shared) == (1, 0)
    exported = await part(f"{routes}.export_labels").asyncio(SAE, client=client)
    kept = [models.LabelLine.from_dict(json.loads(line)) for line in exported.payload.read().splitlines()]
    assert [(line.index, line.text) for line in kept] == [(3, "names"), (4, "places")]
    gone = await part(f"{routes}.delete_feature_label").asyncio_detailed(SAE, 3, client=client)
    assert gone.status_code == 204
