"""A client generated from openapi.yaml makes every job of the README and the page of jobs on the real stack."""

import io
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.documents import JOBS, README, job_specs, name_of
from tests.sdk import generated_sdk, part
from tests.stack.harness import RunningStack


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with generated_sdk(tmp_path_factory.mktemp("sdk")) as package:
        yield package


@pytest.mark.parametrize("spec", job_specs(README, JOBS), ids=name_of)
def test_the_generated_client_makes_the_job_and_reads_its_result(
    sdk: ModuleType, stack: RunningStack, spec: dict[str, Any]
) -> None:
    kind = spec["kind"].title().replace("_", "")
    client = sdk.AuthenticatedClient(
        base_url=stack.base_url, token=stack.api_key, raise_on_unexpected_status=True, timeout=120
    )
    with client:
        body = getattr(part("models"), f"{kind}Spec").from_dict(spec)
        job = part("api.jobs.submit_job").sync(client=client, body=body, prefer="wait=60")
    assert (job.kind, job.status.value) == (spec["kind"], "succeeded")
    method = spec.get("method", {}).get("type", "").title().replace("_", "")
    assert type(job.result).__name__ in (f"{kind}Result", f"{method}Result")
    assert job.result.kind == spec["kind"]
    assert job.result.provenance.model == "smollm2-135m"


def test_the_generated_client_imports_and_exports_a_file_of_labels(sdk: ModuleType, stack: RunningStack) -> None:
    client = sdk.AuthenticatedClient(base_url=stack.base_url, token=stack.api_key, raise_on_unexpected_status=True)
    sae_id = "smollm2-135m-l15-resid-post"
    lines = [{"index": index, "text": f"label {index}"} for index in (7, 4_095)]
    file = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    with client:
        done = part("api.features.import_labels").sync(sae_id, client=client, body=part("types").File(payload=file))
        exported = part("api.features.export_labels").sync(sae_id, client=client).payload.read()
    assert done.stored == len(lines)
    kept = {line["index"]: line["text"] for line in map(json.loads, exported.splitlines())}
    assert kept == {line["index"]: line["text"] for line in lines}
