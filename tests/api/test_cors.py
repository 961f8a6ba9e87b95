"""Web pages of other origins: only those that the operator names."""

import httpx
import pytest

from api.app import create_app
from api.limits import RequestLimits
from tests.api.conftest import Stand

pytestmark = pytest.mark.anyio

PAGE = "https://notebook.example.org"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, prefer"}


def open_to_page(stand: Stand, key: str | None) -> httpx.AsyncClient:
    return stand.client(key, create_app(stand.services, RequestLimits(header_bytes=2_000), origins=[PAGE]))


async def test_no_page_may_ask_unless_its_origin_is_named(stand: Stand) -> None:
    async with stand.client(stand.key("alice")) as client:
        for answer in (
            await client.options("/v1/jobs", headers={"Origin": PAGE, **PREFLIGHT}),
            await client.get("/v1/models", headers={"Origin": PAGE}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_a_named_page_may_ask_and_read_what_it_needs(stand: Stand) -> None:
    async with open_to_page(stand, None) as anyone:
        asked = await anyone.options("/v1/jobs", headers={"Origin": PAGE, **PREFLIGHT})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in asked.headers
    assert asked.headers["x-content-type-options"] == "nosniff"
    async with open_to_page(stand, stand.key("alice")) as client:
        answer = await client.get("/v1/models", headers={"Origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "Retry-After" in answer.headers["access-control-expose-headers"]


async def test_a_named_page_can_also_read_what_is_refused(stand: Stand) -> None:
    async with open_to_page(stand, None) as anyone:
        for status, headers in ((401, {}), (431, {"X-Long": "x" * 3_000})):
            answer = await anyone.get("/v1/models", headers={"Origin": PAGE, **headers})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)


async def test_another_page_may_not(stand: Stand) -> None:
    async with open_to_page(stand, stand.key("alice")) as client:
        headers = {"Origin": "https://elsewhere.example.org"}
        assert (await client.options("/v1/jobs", headers={**headers, **PREFLIGHT})).status_code == 400
        assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=headers)).headers
