"""Batches on real processes: a gateway is killed in each phase, and every line ends exactly once."""

import json
from pathlib import Path
from typing import Any

import httpx

from api.routes.examples import JOBS
from services.batches.ids import job_id_of
from tests.api.specs import PATCHING
from tests.processes import eventually
from tests.stack.gateways import deployment

LINES = 800
WINDOW = 60
JSONL = {"Content-Type": "application/jsonl"}
WITHIN_S = 90


def counts(client: httpx.Client, location: str) -> dict[str, Any]:
    batch: dict[str, Any] = client.get(location).json()
    return {**batch["counts"], "status": batch["status"]}


def test_killing_the_gateway_in_either_phase_loses_no_line_and_ends_none_twice(tmp_path: Path) -> None:
    upload = b"".join(
        json.dumps({"custom_id": f"line-{number}", "job": PATCHING}).encode() + b"\n" for number in range(LINES)
    )
    with deployment(tmp_path, LENSD_MAX_BATCH_JOBS=str(WINDOW)) as deployed:
        gateway = deployed.gateway()
        with deployed.client(gateway) as client:
            posted = client.post("/v1/batches", content=upload, headers=JSONL)
            location = posted.headers["Location"]
            assert eventually(lambda: 0 < counts(client, location)["validated"] < LINES, WITHIN_S)
        gateway.kill()
        gateway.start()
        with deployed.client(gateway) as client:
            cut_short = counts(client, location)
            assert (cut_short["status"], cut_short["validated"] < LINES) == ("validating", True)
            assert eventually(lambda: counts(client, location)["status"] == "running", WITHIN_S), gateway.output
            assert counts(client, location)["queued"] <= WINDOW
        other = deployed.gateway()
        with deployed.workers() as ended:
            assert eventually(lambda: len(ended) > LINES // 10, WITHIN_S)
            gateway.kill()
            with deployed.client(other) as client:
                assert counts(client, location)["status"] == "running"
                assert eventually(lambda: counts(client, location)["status"] == "ended", WITHIN_S), other.output
                last = counts(client, location)
                results = [json.loads(line) for line in client.get(f"{location}/results").content.splitlines()]
                jobs = client.get("/v1/jobs?status=queued").json()["jobs"]
        batch_id = location.rsplit("/", 1)[1]
        assert (last["succeeded"], last["total"]) == (LINES, LINES)
        assert ended == {job_id_of(batch_id, index): 1 for index in range(LINES)}
        assert [(each["custom_id"], each["status"]) for each in results] == [
            (f"line-{number}", "succeeded") for number in range(LINES)
        ]
        assert jobs == []


def test_the_lines_of_a_batch_run_on_the_real_model_as_single_jobs_do(
    client: httpx.Client,
) -> None:
    names = ("features", "attribution", "logit_lens")
    wrong = {**JOBS["features"], "sae": "absent"}
    lines = [*({"custom_id": name, "job": JOBS[name]} for name in names), {"custom_id": "wrong", "job": wrong}]
    upload = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    posted = client.post("/v1/batches?on_invalid=report", content=upload, headers=JSONL)
    location = posted.headers["Location"]
    assert eventually(lambda: counts(client, location)["status"] == "ended", WITHIN_S), counts(client, location)
    results = [json.loads(line) for line in client.get(f"{location}/results").content.splitlines()]
    assert [(each["custom_id"], each["status"]) for each in results] == [
        *((name, "succeeded") for name in names),
        ("wrong", "invalid"),
    ]
    for name, each in zip(names, results, strict=False):
        single = client.post("/v1/jobs", json={**JOBS[name], "cache": False}, headers={"Prefer": "wait=60"}).json()
        assert each["result"]["kind"] == single["kind"]
        assert each["result"]["provenance"] == single["result"]["provenance"]
    assert client.delete(location).status_code == 204
