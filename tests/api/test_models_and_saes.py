"""The catalogue over HTTP, tokenising, and health."""

import httpx
import pytest

from services.contracts.errors import ErrorCode, Unavailable
from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.ports import WorkerState
from tests.api.catalogue import CHAT_MODEL, MODEL, SAE
from tests.api.conftest import POOL, Stand

pytestmark = pytest.mark.anyio


async def test_models_say_what_they_are_and_where_they_are_loaded(stand: Stand, client: httpx.AsyncClient) -> None:
    stand.workers.announce(WorkerState("w1", POOL, {MODEL: "loaded"}), ttl_s=60)
    stand.workers.announce(WorkerState("w2", POOL, {MODEL: "loading", CHAT_MODEL: "loaded"}), ttl_s=60)
    models = {model["id"]: model for model in (await client.get("/v1/models")).json()["models"]}
    assert set(models) == {MODEL, CHAT_MODEL}
    assert models[MODEL]["loaded"] == [
        {"worker": "w1", "status": "loaded"},
        {"worker": "w2", "status": "loading"},
    ]
    one = (await client.get(f"/v1/models/{MODEL}")).json()
    assert one == models[MODEL]
    assert (one["layers"], one["heads"], one["context"]) == (3, 4, 64)


async def test_saes_say_what_they_read(client: httpx.AsyncClient) -> None:
    (sae,) = (await client.get("/v1/saes")).json()["saes"]
    assert (sae["id"], sae["model"], sae["site"], sae["layer"]) == (SAE, MODEL, "resid_post", 1)
    assert (await client.get(f"/v1/saes/{SAE}")).json() == sae


@pytest.mark.parametrize(
    ("path", "code", "served"), [("models/gpt-5", "unknown_model", MODEL), ("saes/none", "unknown_sae", SAE)]
)
async def test_what_is_not_served_is_not_found_and_names_what_is(
    client: httpx.AsyncClient, path: str, code: str, served: str
) -> None:
    response = await client.get(f"/v1/{path}")
    assert (response.status_code, response.json()["code"]) == (404, code)
    assert served in response.json()["detail"]


async def test_a_very_long_id_is_refused_without_an_echo(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models/" + "a" * 3_000)
    assert response.status_code == 422
    assert len(response.json()["errors"][0]["message"]) < 250


async def test_a_prompt_is_tokenised_as_a_job_would_read_it(client: httpx.AsyncClient) -> None:
    response = await client.post(f"/v1/models/{MODEL}/tokenize", json={"prompt": "John gave"})
    tokens = response.json()
    assert response.status_code == 200
    assert "".join(tokens["strings"]) == "John gave"
    assert len(tokens["ids"]) == len(tokens["strings"])
    assert tokens["bos_prepended"] is False


@pytest.mark.parametrize(("bos", "prepended"), [(None, True), (True, True), (False, False)])
async def test_bos_is_the_requests_wish_or_else_the_tokenizers_rule(
    client: httpx.AsyncClient, bos: bool | None, prepended: bool
) -> None:
    response = await client.post(f"/v1/models/{CHAT_MODEL}/tokenize", json={"prompt": "the cat", "bos": bos})
    assert response.json()["bos_prepended"] is prepended


async def test_messages_go_through_the_chat_template(client: httpx.AsyncClient) -> None:
    prompt = {"type": "messages", "messages": [{"role": "user", "content": "the cat"}]}
    response = await client.post(f"/v1/models/{CHAT_MODEL}/tokenize", json={"prompt": prompt})
    assert response.json()["strings"] == ["<s>", "user", ":", "the", "cat", "assistant", ":"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/prompt"),
        ({"prompt": ""}, "/prompt"),
        ({"prompt": "a", "bso": True}, "/bso"),
        ({"prompt": "a " * 99}, "/prompt"),
    ],
)
async def test_a_wrong_request_to_tokenise_points_at_what_is_wrong(
    client: httpx.AsyncClient, body: dict[str, object], pointer: str
) -> None:
    response = await client.post(f"/v1/models/{MODEL}/tokenize", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer


async def test_tokenising_for_a_model_that_is_not_served_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/models/none/tokenize", json={"prompt": "a"})
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")


async def test_the_process_is_alive_whatever_is_behind_it(stand: Stand) -> None:
    async with stand.client(key=None) as anyone:
        response = await anyone.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_the_gateway_is_ready_once_a_worker_of_its_pool_is_alive(stand: Stand) -> None:
    async with stand.client(key=None) as anyone:
        stand.workers.announce(WorkerState("w0", "other-pool", {}), ttl_s=60)
        response = await anyone.get("/readyz")
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        assert f"the pool '{POOL}'" in response.json()["detail"]
        assert "retry-after" in response.headers
        stand.workers.announce(WorkerState("w1", POOL, {}), ttl_s=60)
        response = await anyone.get("/readyz")
        assert (response.status_code, response.json()) == (200, {"status": "ready", "pools": {POOL: 1}})


class SilentStore(MemoryJobStore):
    def ping(self) -> None:
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the job store does not answer")


async def test_the_gateway_is_not_ready_without_its_store(stand: Stand) -> None:
    stand.workers.announce(WorkerState("w1", POOL, {}), ttl_s=60)
    async with stand.client(None, stand.app_with(store=SilentStore(JobPolicy()))) as anyone:
        response = await anyone.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.json()["detail"] == "the job store does not answer"
