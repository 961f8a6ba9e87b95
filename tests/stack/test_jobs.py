"""The README's jobs through the real stack: HTTP, Valkey, Celery, a worker with the real model, and back."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy

from tests.documents import JOBS, README, job_specs, problem, python_blocks
from tests.stack.harness import RunningStack

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
PATCHING = {
    "kind": "patching",
    "model": "smollm2-135m",
    "method": {"type": "activation_patching", "site": "resid_pre", "layers": [0, 15, 29]},
    "pairs": [{"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}],
    "cache": False,
}


def wait_for(client: httpx.Client, spec: dict[str, Any], **headers: str) -> dict[str, Any]:
    """Post a job and wait for its end in the same request."""
    response = client.post("/v1/jobs", json=spec, headers={"Prefer": "wait=60", **headers})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    assert job["status"] == "succeeded", job["error"]
    return job


def states(client: httpx.Client, location: str) -> list[dict[str, Any]]:
    with client.stream("GET", f"{location}/events") as response:
        assert response.status_code == 200
        return [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]


@pytest.mark.parametrize("spec", job_specs(README), ids=lambda spec: str(spec["kind"]))
def test_every_job_in_the_readme_runs_and_says_where_its_numbers_come_from(
    client: httpx.Client, spec: dict[str, Any]
) -> None:
    job = wait_for(client, spec)
    result = job["result"]
    assert result["kind"] == spec["kind"] == job["kind"]
    provenance = result["provenance"]
    assert provenance["model"] == "smollm2-135m"
    assert len(provenance["weights_sha256"]) == 64
    assert set(provenance["versions"]) == {"lensd", "torch", "transformers", "transformer_lens"}
    assert result["usage"]["seconds"] > 0
    assert job["progress"]["done"] == job["progress"]["planned"] > 0


def test_the_readmes_patching_job_gives_the_known_numbers(client: httpx.Client) -> None:
    (spec,) = (spec for spec in job_specs(README) if spec["kind"] == "patching")
    result = wait_for(client, spec)["result"]
    assert result["pairs"][0]["baselines"]["clean"] == pytest.approx(3.12, abs=0.02)
    assert result["pairs"][0]["baselines"]["corrupted"] == pytest.approx(-4.16, abs=0.02)
    assert result["effects"]["dims"] == ["layer", "position"]
    assert result["effects"]["shape"] == [30, 14]
    normalized = np.array(result["normalized"]["values"]).reshape(30, 14)
    assert normalized[0, 9] == pytest.approx(1.0, abs=1e-3), "at layer 0 the difference sits in the differing token"
    assert normalized[29, 13] > 0.9, "at the last layer it has moved to the end"
    np.testing.assert_allclose(np.delete(normalized[0], 9), 0.0, atol=1e-3)


def test_the_direction_of_the_page_of_jobs_steers_the_texts_it_prints(
    stack: RunningStack, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = python_blocks(JOBS)
    exec(compile(block, "docs/jobs.md", "exec"), {"URL": stack.base_url, "KEY": stack.api_key})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in printed if line.split(" ", 1)[0] in {"None", "-0.5", "0.5"}] == [
        "None",
        "-0.5",
        "0.5",
    ]


def test_the_tokens_of_a_generation_come_while_it_runs(client: httpx.Client) -> None:
    body = {
        "kind": "generation",
        "model": "smollm2-135m",
        "prompts": ["Once upon a time"],
        "max_new_tokens": 120,
        "stop": [],
        "cache": False,
    }
    response = client.post("/v1/jobs", json=body)
    seen = states(client, response.headers["Location"])
    pieces = [piece for job in seen if "tokens" in job for piece in job["tokens"]]
    written = client.get(response.headers["Location"]).json()["result"]["prompts"][0]["unsteered"]["tokens"]
    told = {piece["first"] + place: token for piece in pieces for place, token in enumerate(piece["tokens"])}
    assert len(told) > 20, "most of them, long before the end"
    assert [told[number] for number in range(len(told))] == written[: len(told)]


def test_a_job_can_be_followed_by_its_events(client: httpx.Client) -> None:
    response = client.post("/v1/jobs", json=PATCHING)
    assert response.status_code == 202
    assert response.headers["Retry-After"]
    seen = states(client, response.headers["Location"])
    assert seen[0]["status"] in ("queued", "running", "succeeded")
    assert seen[-1]["status"] == "succeeded"
    assert client.get(response.headers["Location"]).json()["result"]["kind"] == "patching"


def test_a_result_comes_as_safetensors_and_npz_with_the_same_numbers(client: httpx.Client) -> None:
    job = wait_for(client, PATCHING)
    href = f"/v1/jobs/{job['id']}/result"
    expected = np.array(job["result"]["effects"]["values"], dtype=np.float32).reshape(3, 14)
    tensors = client.get(href, headers={"Accept": "application/vnd.safetensors"})
    np.testing.assert_array_equal(safetensors.numpy.load(tensors.content)["effects"], expected)
    arrays = client.get(href, headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(arrays.content)) as archive:
        np.testing.assert_array_equal(archive["effects"], expected)


def test_a_tensor_past_the_inline_bound_is_fetched_by_its_href(client: httpx.Client) -> None:
    prompt = "The Eiffel Tower is in Paris. " * 20
    spec = {
        "kind": "features",
        "model": "smollm2-135m",
        "sae": "smollm2-135m-l15-resid-post",
        "prompts": [prompt],
        "features": list(range(200)),
        "promoted_logits": 0,
    }
    tensor = wait_for(client, spec)["result"]["prompts"][0]["activations"]
    assert tensor["encoding"] == "external"
    raw = client.get(tensor["href"])
    assert raw.status_code == 200
    assert len(raw.content) == tensor["nbytes"]
    array = np.frombuffer(raw.content, dtype="<f4").reshape(tensor["shape"])
    assert np.isfinite(array).all()
    assert (array >= 0).all()


def test_many_clients_at_once_get_the_numbers_that_one_gets(client: httpx.Client) -> None:
    spec = PATCHING | {"method": PATCHING["method"] | {"layers": [15]}}  # type: ignore[operator]  # a plain dict
    alone = wait_for(client, spec)["result"]["effects"]["values"]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: wait_for(client, spec)["result"]["effects"]["values"], range(8)))
    for values in together:
        np.testing.assert_allclose(values, alone, atol=1e-4)


def test_a_running_sweep_can_be_cancelled_and_the_next_job_is_right(client: httpx.Client) -> None:
    sweep = PATCHING | {"method": {"type": "activation_patching", "site": "z", "positions": list(range(14))}}
    location = client.post("/v1/jobs", json=sweep).headers["Location"]
    with client.stream("GET", f"{location}/events") as response:
        for line in response.iter_lines():
            if line.startswith("data:") and json.loads(line[5:])["progress"]["done"] > 0:
                break
    assert client.post(f"{location}/cancel").status_code == 200
    assert states(client, location)[-1]["status"] == "cancelled"
    assert client.get(f"{location}/result").status_code == 409
    baselines = wait_for(client, PATCHING)["result"]["pairs"][0]["baselines"]
    assert baselines["clean"] == pytest.approx(3.12, abs=0.02)


def test_a_deadline_ends_a_job_that_cannot_keep_it(client: httpx.Client) -> None:
    sweep = PATCHING | {"method": {"type": "activation_patching", "site": "z", "positions": list(range(14))}}
    job = client.post("/v1/jobs", json=sweep | {"deadline_s": 1.0}, headers={"Prefer": "wait=60"}).json()
    assert job["status"] == "failed"
    assert job["error"]["code"] == "deadline_exceeded"


def test_the_readmes_refusal_is_what_a_wrong_job_gets(client: httpx.Client) -> None:
    wrong = PATCHING | {"method": {"type": "activation_patching", "site": "resid_pre", "layers": [31]}}
    response = client.post("/v1/jobs", json=wrong)
    assert response.status_code == 422
    assert response.headers["Content-Type"] == "application/problem+json"
    shown = problem()
    answered = response.json()
    assert {name: answered[name] for name in shown} == shown


def test_models_say_where_they_are_loaded(client: httpx.Client) -> None:
    wait_for(client, PATCHING)
    models = {model["id"]: model for model in client.get("/v1/models").json()["models"]}
    assert set(models) == {"induction-2l", "smollm2-135m"}
    assert [place["status"] for place in models["smollm2-135m"]["loaded"]] == ["loaded"]
