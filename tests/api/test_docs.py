"""The interactive API page works with nothing but the gateway itself."""

import hashlib
import re

import httpx
import pytest

from api.docs import ASSETS, STATIC
from api.openapi import describe
from tests.api.conftest import Stand

pytestmark = pytest.mark.anyio

CHECKSUMS = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}


async def test_the_root_leads_to_the_page(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


async def test_the_page_and_all_it_needs_come_from_here(stand: Stand) -> None:
    async with stand.client(key=None) as anyone:
        page = await anyone.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "://" not in page.text
        for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            asset = await anyone.get(path)
            assert asset.status_code == 200
            assert asset.headers["content-type"].startswith(ASSETS[path.rsplit("/", 1)[1]])
        assert (await anyone.get("/openapi.json")).json() == describe()


async def test_the_page_may_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/docs")).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy


async def test_only_the_pages_own_files_are_served(client: httpx.AsyncClient) -> None:
    for name in ("README.md", "..%2fapp.py", "nothing.js"):
        response = await client.get(f"/docs/{name}")
        assert (response.status_code, response.json()["code"]) == (404, "route_not_found")


@pytest.mark.parametrize("name", sorted(CHECKSUMS))
def test_the_vendored_files_are_the_released_ones(name: str) -> None:
    assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == CHECKSUMS[name]


def test_the_page_stays_under_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 2_000_000
