"""The result cache and idempotency keys through the real stack."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.plant import Plant, running_plant
from tests.stack.harness import RunningStack
from tests.stack.test_jobs import CLEAN, states, wait_for

_numbers = itertools.count()


def fresh_job(**more: Any) -> dict[str, Any]:
    """A small job that nobody has asked yet, with a label of its own."""
    label = f"answers-{next(_numbers)}"
    example = {"prompt": f"{label}: {CLEAN}", "answer": " Mary", "foil": " John"}
    method = {"type": "direct_logit_attribution"}
    return {
        "kind": "attribution",
        "model": "smollm2-135m",
        "method": method,
        "examples": [example],
        "label": label,
        **more,
    }


def post_at_once(stack: RunningStack, spec: dict[str, Any], count: int, key: str) -> list[httpx.Response]:
    """The same post from `count` clients at a time, each with a connection of its own."""

    def post(_: int) -> httpx.Response:
        with stack.client() as client:
            return client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(post, range(count)))


def test_a_job_that_has_run_answers_the_same_job_at_once(client: httpx.Client) -> None:
    spec = fresh_job()
    first = wait_for(client, spec)
    answer = client.post("/v1/jobs", json=spec | {"label": "again"})
    assert answer.status_code == 200
    job = answer.json()
    assert (first["cached"], job["cached"]) == (False, True)
    assert job["id"] != first["id"]
    assert job["result"] == first["result"]
    assert [(each["status"], each["cached"]) for each in states(client, f"/v1/jobs/{job['id']}")] == [
        ("succeeded", True)
    ]
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    alone = wait_for(client, spec | {"cache": False})
    assert not alone["cached"]


def test_a_deleted_result_answers_no_longer_and_what_it_answered_stays(client: httpx.Client) -> None:
    prompt = f"{fresh_job()['label']} " + "The Eiffel Tower is in Paris. " * 20
    spec = {
        "kind": "features",
        "model": "smollm2-135m",
        "sae": "smollm2-135m-l15-resid-post",
        "prompts": [prompt],
        "features": list(range(200)),
        "promoted_logits": 0,
    }
    first = wait_for(client, spec)
    kept = client.get(first["result"]["prompts"][0]["activations"]["href"]).content
    job = client.post("/v1/jobs", json=spec).json()
    assert job["cached"]
    assert client.delete(f"/v1/jobs/{first['id']}").status_code == 204
    href = job["result"]["prompts"][0]["activations"]["href"]
    assert job["id"] in href
    assert client.get(href).content == kept
    assert client.post("/v1/jobs", json=spec).status_code == 202


@pytest.mark.parametrize("has_run", [False, True])
def test_twenty_posts_at_once_under_one_key_make_one_job(
    stack: RunningStack, client: httpx.Client, has_run: bool
) -> None:
    spec = fresh_job()
    if has_run:
        wait_for(client, spec | {"label": "earlier"})
    answers = post_at_once(stack, spec, 20, key=spec["label"])
    assert {answer.status_code for answer in answers} <= {200, 202}
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    listed = client.get("/v1/jobs", params={"label": spec["label"]}).json()["jobs"]
    assert [job["id"] for job in listed] == list(ids)
    other = client.post("/v1/jobs", json=fresh_job(), headers={"Idempotency-Key": spec["label"]})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    job = client.get(f"/v1/jobs/{ids.pop()}", headers={"Prefer": "wait=60"}).json()
    assert (job["status"], job["cached"], job["attempt"]) == ("succeeded", has_run, 0 if has_run else 1)


def test_a_worker_that_computes_otherwise_answers_with_nothing_that_was_there(home: Path, tmp_path: Path) -> None:
    spec = fresh_job()
    with running_plant(tmp_path / "home", home) as plant, plant.client() as client:
        first = wait_for(client, spec)
        assert client.post("/v1/jobs", json=spec).json()["cached"]
        succeed(plant, LENSD_DTYPE="float64")
        second = wait_for(client, spec)
        succeed(plant)
        third = client.post("/v1/jobs", json=spec).json()
    assert (second["cached"], second["result"]["provenance"]["dtype"]) == (False, "float64")
    assert third["cached"], "what was computed so is still there"
    assert third["result"] == first["result"]


def succeed(plant: Plant, **environment: str) -> None:
    """End the worker, and start another in its place."""
    (worker,) = plant.workers
    worker.end()
    worker.start(environment)
    plant.wait_for_workers()
