"""Labels over HTTP: set, deleted, imported, exported, and whose they are."""

import json
from typing import Any

import httpx
import pytest

from services.tenants.audit import AuditAction
from services.tenants.keys import Scope
from tests.api.catalogue import FEATURES, SAE
from tests.api.conftest import Stand

pytestmark = pytest.mark.anyio

LABEL = {"text": "names after 'and'", "author": "ada", "method": "manual"}
LABELS = f"/v1/saes/{SAE}/labels"
JSONL = {"Content-Type": "application/jsonl"}


def url(index: int) -> str:
    return f"/v1/saes/{SAE}/features/{index}/label"


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def exported(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    response = await client.get(LABELS)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonl")
    return [json.loads(line) for line in response.content.splitlines()]


async def test_a_label_is_set_again_and_again_and_deleted_once(client: httpx.AsyncClient) -> None:
    for text in ("first", "second"):
        response = await client.put(url(3), json={**LABEL, "text": text})
        assert response.status_code == 200
        label = response.json()
        assert label.pop("updated_at")
        assert label == {**LABEL, "text": text, "shared": False}
    assert await exported(client) == [{"index": 3, **LABEL, "text": "second", "shared": False}]
    assert (await client.delete(url(3))).status_code == 204
    gone = await client.delete(url(3))
    assert (gone.status_code, gone.json()["code"]) == (404, "label_not_found")
    assert await exported(client) == []


async def test_anothers_label_is_not_there(stand: Stand, client: httpx.AsyncClient) -> None:
    await client.put(url(3), json=LABEL)
    async with stand.client(stand.key("bob")) as bob:
        assert await exported(bob) == []
        response = await bob.delete(url(3))
    assert (response.status_code, response.json()["code"]) == (404, "label_not_found")
    assert len(await exported(client)) == 1


async def test_shared_labels_are_the_operators_to_set_and_everybodys_to_see(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    line = {"index": 1, **LABEL, "shared": True}
    async with stand.client(stand.key("bob", Scope.JOBS, Scope.READ)) as bob:
        for response in (
            await bob.put(url(1), json={**LABEL, "shared": True}),
            await bob.delete(f"{url(1)}?shared=true"),
            await bob.post(LABELS, content=jsonl({"index": 2, **LABEL}, line), headers=JSONL),
        ):
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
            assert "'admin'" in response.json()["detail"]
        assert await exported(bob) == []
        assert (await client.put(url(1), json={**LABEL, "shared": True})).status_code == 200
        assert await exported(bob) == [line]
        assert (await bob.delete(url(1))).status_code == 404
    assert (await client.delete(f"{url(1)}?shared=true")).status_code == 204
    assert await exported(client) == []
    entries = stand.services.audit.page(None, 10).entries
    assert [(entry.action, entry.target) for entry in entries] == [
        (AuditAction.SHARED_LABEL_DELETED, SAE),
        (AuditAction.LABELS_SHARED, SAE),
        (AuditAction.ADMIN_REFUSED, SAE),
    ]


async def test_a_key_that_may_only_read_sets_no_label(stand: Stand) -> None:
    async with stand.client(stand.key("alice", Scope.READ)) as reader:
        for response in (
            await reader.put(url(1), json=LABEL),
            await reader.delete(url(1)),
            await reader.post(LABELS, content=jsonl({"index": 1, **LABEL}), headers=JSONL),
        ):
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert await exported(reader) == []


@pytest.mark.parametrize("index", [-1, FEATURES, 9_999_999])
async def test_a_feature_that_does_not_exist_is_not_found(client: httpx.AsyncClient, index: int) -> None:
    for response in (await client.put(url(index), json=LABEL), await client.delete(url(index))):
        assert (response.status_code, response.json()["code"]) == (404, "unknown_feature")
        assert f"features 0..{FEATURES - 1}" in response.json()["detail"]


async def test_an_sae_that_is_not_served_is_not_found(client: httpx.AsyncClient) -> None:
    for response in (
        await client.put("/v1/saes/none/features/0/label", json=LABEL),
        await client.post("/v1/saes/none/labels", content=jsonl({"index": 1, **LABEL}), headers=JSONL),
        await client.get("/v1/saes/none/labels"),
    ):
        assert (response.status_code, response.json()["code"]) == (404, "unknown_sae")


async def test_a_label_of_a_megabyte_is_refused_and_nothing_is_stored(client: httpx.AsyncClient) -> None:
    whole = await client.put(url(1), json={"text": "x" * 1_000_000})
    assert (whole.status_code, whole.json()["code"]) == (413, "body_too_large")
    smaller = await client.put(url(1), json={"text": "x" * 900_000})
    assert (smaller.status_code, smaller.json()["code"]) == (422, "invalid_request")
    line = await client.post(LABELS, content=jsonl({"index": 1, "text": "x" * 1_000_000}), headers=JSONL)
    assert (line.status_code, line.json()["code"]) == (422, "invalid_request")
    assert all(len(response.content) < 2_000 for response in (whole, smaller, line))
    assert await exported(client) == []


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"text": ""}, "/text"),
        ({"text": " \n"}, "/text"),
        ({"text": "x" * 2_001}, "/text"),
        ({"author": "x" * 201}, "/author"),
        ({"method": ""}, "/method"),
        ({"shared": "yes"}, "/shared"),
        ({"index": 3}, "/index"),
    ],
)
async def test_a_wrong_label_points_at_what_is_wrong(
    client: httpx.AsyncClient, changed: dict[str, Any], pointer: str
) -> None:
    response = await client.put(url(1), json={**LABEL, **changed})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_an_export_is_an_import(stand: Stand, client: httpx.AsyncClient) -> None:
    lines = [{"index": index, **LABEL, "shared": index == 2} for index in range(4)]
    body = jsonl(*lines[:2]) + b"\r\n" + jsonl(*lines[2:])
    response = await client.post(LABELS, content=body, headers={"Content-Type": "application/x-ndjson"})
    assert (response.status_code, response.json()) == (200, {"stored": 4, "shared": 1})
    assert await exported(client) == lines
    async with stand.client(stand.key("bob")) as bob:
        whole = (await client.get(LABELS)).content
        assert (await bob.post(LABELS, content=whole, headers=JSONL)).status_code == 200
        assert await exported(bob) == lines


async def test_every_wrong_line_is_told_by_its_number_and_none_is_stored(client: httpx.AsyncClient) -> None:
    good = {"index": 1, **LABEL}
    body = jsonl(good, {"index": 2}) + b"{not json\n\n" + jsonl({**good, "index": 3}, {**good, "colour": 1}, good)
    problem = (await client.post(LABELS, content=body, headers=JSONL)).json()
    assert (problem["status"], problem["code"]) == (422, "invalid_request")
    assert problem["detail"] == "3 of 6 lines are wrong, and nothing was stored: 2 to 3, 6"
    assert [(item["pointer"], item["code"]) for item in problem["errors"]] == [
        ("/1/text", "invalid_request"),
        ("/2", "invalid_json"),
        ("/5/colour", "invalid_request"),
    ]
    assert problem["errors"][0]["message"].startswith("line 2: ")
    assert await exported(client) == []


async def test_a_feature_that_does_not_exist_or_comes_twice_is_told_by_its_line(client: httpx.AsyncClient) -> None:
    body = jsonl(*({"index": index, **LABEL} for index in (0, FEATURES, 0, 1)))
    problem = (await client.post(LABELS, content=body, headers=JSONL)).json()
    assert [(item["pointer"], item["code"]) for item in problem["errors"]] == [
        ("/1/index", "unknown_feature"),
        ("/2/index", "invalid_request"),
    ]
    assert problem["detail"].endswith("2 to 3")
    assert "in line 1 already" in problem["errors"][1]["message"]
    assert await exported(client) == []


@pytest.mark.parametrize("body", [b"", b"\n \n", b"{}\n" * 50_001])
async def test_an_import_has_at_least_one_line_and_at_most_its_bound(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post(LABELS, content=body, headers=JSONL)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "send 1 to 50,000" in response.json()["detail"]


async def test_fifty_thousand_wrong_lines_make_a_short_answer(client: httpx.AsyncClient) -> None:
    response = await client.post(LABELS, content=b"1\n{}\n{\n\n" * 16_000, headers=JSONL)
    assert response.status_code == 422
    assert len(response.content) < 10_000
    assert response.json()["detail"].startswith("48,000 of 48,000 lines are wrong")


async def test_lines_and_json_are_not_taken_for_each_other(client: httpx.AsyncClient) -> None:
    lines = await client.post(LABELS, json={"index": 1, **LABEL})
    assert (lines.status_code, lines.json()["code"]) == (415, "unsupported_media_type")
    assert "application/jsonl" in lines.json()["detail"]
    label = await client.put(url(1), content=jsonl(LABEL), headers=JSONL)
    assert (label.status_code, label.json()["code"]) == (415, "unsupported_media_type")


async def test_lines_have_a_bound_of_bytes_of_their_own(client: httpx.AsyncClient) -> None:
    taken = await client.post(LABELS, content=jsonl({"index": 1, **LABEL}) + b"\n" * 1_500_000, headers=JSONL)
    assert taken.status_code == 200
    refused = await client.post(LABELS, content=b"\n" * 16_000_001, headers=JSONL)
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
