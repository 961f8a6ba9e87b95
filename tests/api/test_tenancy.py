"""Tenants never meet: every route of the document, asked with keys that open nothing and with someone else's key.

The routes come from the document, so that a new one is walked as soon as it is there; a parameter that nobody has said
anything about fails the walk.
"""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.openapi import describe
from services.jobs.record import StoredResult
from services.tenants.keys import Scope, new_key
from tests.api.catalogue import MODEL, SAE
from tests.api.conftest import Stand
from tests.api.specs import PATCHING

pytestmark = pytest.mark.anyio

OPEN = {"/livez", "/readyz"}
SECRET = "alices-own-label-7c1d"

CATALOGUE = {"model_id": MODEL, "sae_id": SAE}
"""Path parameters that name what the operator serves, to whoever may use it."""
WITHIN = {"name": "effects", "index": "3", "label_id": "lbl_" + "a" * 26}
"""Those that name something within what another parameter names."""
ABSENT = {
    "job_id": "job_" + "a" * 26,
    "batch_id": "batch_" + "a" * 26,
    "webhook_id": "wh_" + "a" * 26,
    "key_id": "aaaaaaaaaaaa",
    "model_id": "absent",
    "sae_id": "absent",
}
"""Names of what is not there."""


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    details: Mapping[str, Any]

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset(item["name"] for item in self.details.get("parameters", ()) if item["in"] == "path")

    async def ask(self, client: httpx.AsyncClient, names: Mapping[str, str]) -> httpx.Response:
        """A request as the document describes it, with its first example for a body."""
        url = self.path.format(**{**WITHIN, **names})
        content = self.details.get("requestBody", {}).get("content", {})
        if not content:
            return await client.request(self.method, url)
        media_type, described = next(iter(content.items()))
        (example, *_) = (item["value"] for item in described.get("examples", {"none": {"value": {}}}).values())
        raw = example if isinstance(example, str) else json.dumps(example)
        return await client.request(self.method, url, content=raw, headers={"Content-Type": media_type})


OPERATIONS = [
    pytest.param(Operation(method, path, details), id=details["operationId"])
    for path, item in describe()["paths"].items()
    if path not in OPEN
    for method, details in item.items()
]
OF_A_TENANT = {"job_id", "batch_id", "webhook_id"}
WITH_SOMETHING_OF_ALICES = [each for each in OPERATIONS if each.values[0].parameters & OF_A_TENANT]  # type: ignore[union-attr]
OF_THE_CATALOGUE = [each for each in OPERATIONS if each.values[0].parameters & CATALOGUE.keys()]  # type: ignore[union-attr]


@dataclass(frozen=True)
class Alices:
    """What Alice has: a finished job, a batch, a feature's label, a key; nothing else is hers."""

    names: Mapping[str, str]
    before: Mapping[str, Any]


@pytest.fixture
async def alices(stand: Stand) -> AsyncIterator[Alices]:
    async with stand.client(stand.key("alice")) as alice:
        created = await alice.post("/v1/jobs", json={**PATCHING, "label": SECRET, "metadata": {"note": SECRET}})
        job_id = created.json()["id"]
        stand.succeed(stand.claim(), StoredResult(document=json.dumps({"kind": "patching", "note": SECRET})))
        label = f"/v1/saes/{SAE}/features/{WITHIN['index']}/label"
        assert (await alice.put(label, json={"text": SECRET, "author": "alice", "method": "human"})).status_code == 200
        before = (await alice.get(f"/v1/jobs/{job_id}")).json()
        line = json.dumps({"custom_id": SECRET, "job": PATCHING})
        batch = await alice.post("/v1/batches", content=line, headers={"Content-Type": "application/jsonl"})
        batch_id = batch.json()["id"]
        key_id = stand.keys.list()[0].id
        webhook = {"url": "https://hooks.example.com/", "description": SECRET}
        webhook_id = (await alice.post("/v1/webhooks", json=webhook)).json()["id"]
        names = {"job_id": job_id, "batch_id": batch_id, "key_id": key_id, "webhook_id": webhook_id}
        yield Alices({**ABSENT, **CATALOGUE, **names}, before)
        assert (await alice.get(f"/v1/jobs/{job_id}")).json() == before, "someone changed it"
        assert (await alice.get(f"/v1/batches/{batch_id}")).json() == batch.json(), "someone changed it"
        assert SECRET in (await alice.get(f"/v1/saes/{SAE}/labels")).text, "someone deleted it"
        assert SECRET in (await alice.get(f"/v1/webhooks/{webhook_id}")).text, "someone deleted it"


def body_of(response: httpx.Response) -> object:
    """The problem without what differs from request to request."""
    return {**response.json(), "request_id": "", "instance": ""}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_path_parameter_is_known_to_this_walk(operation: Operation) -> None:
    unknown = operation.parameters - CATALOGUE.keys() - WITHIN.keys() - ABSENT.keys()
    assert not unknown, f"say in this file what {sorted(unknown)} name, and whose it is"


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_without_a_key_that_lives_every_route_says_the_same_and_nothing_else(
    stand: Stand, alices: Alices, operation: Operation
) -> None:
    expired, record = new_key("alice", "expired", tuple(Scope))
    stand.keys.put(record.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)}))
    revoked = stand.key("alice")
    stand.services.keys.revoke(revoked.split("_")[1])
    never, _ = new_key("alice", "never stored", tuple(Scope))
    problems = []
    for key in (expired, revoked, never, None):
        async with stand.client(key) as client:
            response = await operation.ask(client, alices.names)
        assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert "ratelimit" not in response.headers
        assert SECRET not in response.text
        problems.append(body_of(response))
    assert problems[0] == problems[1] == problems[2]


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_foreign_key_learns_nothing_from_any_route(stand: Stand, alices: Alices, operation: Operation) -> None:
    async with stand.client(stand.key("bob", Scope.JOBS, Scope.READ)) as bob:
        response = await operation.ask(bob, alices.names)
    assert str(response.status_code) in operation.details["responses"]
    assert SECRET not in response.text
    assert "alice" not in response.text
    if operation.path.startswith("/v1/admin"):
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("operation", WITH_SOMETHING_OF_ALICES)
async def test_what_is_someone_elses_is_as_what_is_not_there(
    stand: Stand, alices: Alices, operation: Operation
) -> None:
    async with stand.client(stand.key("bob", Scope.JOBS, Scope.READ)) as bob:
        foreign = await operation.ask(bob, alices.names)
        absent = await operation.ask(bob, {**alices.names, **ABSENT})
    assert foreign.status_code == absent.status_code == 404
    shown = json.dumps(body_of(foreign))
    for name in OF_A_TENANT:
        shown = shown.replace(alices.names[name], ABSENT[name])
    assert json.loads(shown) == body_of(absent)


@pytest.mark.parametrize("operation", OF_THE_CATALOGUE)
async def test_a_model_that_a_key_may_not_use_is_as_one_that_is_not_served(stand: Stand, operation: Operation) -> None:
    plaintext, record = new_key("carol", "of one model", (Scope.JOBS, Scope.READ))
    stand.keys.put(record.model_copy(update={"models": ("tiny-words",)}))
    async with stand.client(plaintext) as carol:
        withheld = await operation.ask(carol, {**ABSENT, **CATALOGUE})
        absent = await operation.ask(carol, ABSENT)
    assert withheld.status_code == absent.status_code == 404
    shown = json.dumps(body_of(withheld))
    for name, held in CATALOGUE.items():
        shown = shown.replace(f"'{held}'", f"'{ABSENT[name]}'")
    assert json.loads(shown) == body_of(absent)


async def test_lists_and_submission_know_only_the_models_of_the_key(stand: Stand) -> None:
    plaintext, record = new_key("carol", "of one model", (Scope.JOBS, Scope.READ))
    stand.keys.put(record.model_copy(update={"models": ("tiny-words",)}))
    async with stand.client(plaintext) as carol:
        models = (await carol.get("/v1/models")).json()["models"]
        saes = (await carol.get("/v1/saes")).json()["saes"]
        withheld = await carol.post("/v1/jobs", json=PATCHING)
        absent = await carol.post("/v1/jobs", json={**PATCHING, "model": "absent"})
    assert ([model["id"] for model in models], saes) == (["tiny-words"], [])
    assert withheld.status_code == absent.status_code == 422
    assert json.loads(json.dumps(body_of(withheld)).replace(f"'{MODEL}'", "'absent'")) == body_of(absent)
