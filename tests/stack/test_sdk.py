"""A client generated from openapi.yaml makes one job of each kind on the real stack."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.readme import job_specs
from tests.sdk import generated_sdk, part
from tests.stack.harness import RunningStack

MODELS = {
    "patching": ("PatchingSpec", "PatchingResult"),
    "attribution": ("AttributionSpec", "AttributionResult"),
    "features": ("FeaturesSpec", "FeaturesResult"),
}


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with generated_sdk(tmp_path_factory.mktemp("sdk")) as package:
        yield package


@pytest.mark.parametrize("spec", job_specs(), ids=lambda spec: str(spec["kind"]))
def test_the_generated_client_makes_the_job_and_reads_its_result(
    sdk: ModuleType, stack: RunningStack, spec: dict[str, Any]
) -> None:
    asked, answered = MODELS[spec["kind"]]
    client = sdk.AuthenticatedClient(
        base_url=stack.base_url, token=stack.api_key, raise_on_unexpected_status=True, timeout=120
    )
    with client:
        body = getattr(part("models"), asked).from_dict(spec)
        job = part("api.jobs.submit_job").sync(client=client, body=body, prefer="wait=60")
    assert (job.kind, job.status.value) == (spec["kind"], "succeeded")
    assert type(job.result).__name__ == answered
    assert job.result.provenance.model == "smollm2-135m"
