"""What every answer carries, and what is logged of it."""

import json
import logging

import httpx
import pytest

from services import logs
from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import JobRecord
from tests.api.conftest import Stand
from tests.api.specs import CLEAN, PATCHING

pytestmark = pytest.mark.anyio


async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient) -> None:
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/livez"),
        ("GET", "/nothing"),
        ("GET", "/v1/jobs/none"),
        ("PUT", "/v1/jobs"),
        ("OPTIONS", "/v1/jobs"),
    ):
        headers = (await client.request(method, path)).headers
        assert not [name for name in headers if name.startswith("access-control-")]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


async def test_a_request_id_is_taken_over_and_named_in_the_problem(client: httpx.AsyncClient) -> None:
    response = await client.get("/nothing", headers={"X-Request-Id": "trace-1.a_B"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "trace-1.a_B"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "é".encode().decode("latin-1")])
async def test_a_request_id_of_another_form_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    response = await client.get("/livez", headers={b"X-Request-Id": given.encode("latin-1")})
    assert response.headers["x-request-id"].startswith("req_")


async def test_an_unknown_route_and_a_wrong_method_are_problems_too(client: httpx.AsyncClient) -> None:
    unknown = await client.get("/v2/jobs")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "route_not_found")
    wrong = await client.put("/v1/jobs")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET, POST", "those of every route of the path"
    assert unknown.headers["content-type"] == wrong.headers["content-type"] == "application/problem+json"


class BrokenStore(MemoryJobStore):
    def get(self, job_id: str) -> JobRecord | None:
        raise RuntimeError(f"a detail that is nobody's business: {job_id}")


async def test_the_unexpected_is_a_problem_without_details_and_a_log_with_them(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    async with stand.client(stand.key("alice"), stand.app_with(store=BrokenStore(JobPolicy()))) as client:
        response = await client.get("/v1/jobs/job_" + "a" * 26, headers={"X-Request-Id": "r-1"})
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "business" not in response.text
    assert "Traceback" not in response.text
    assert "r-1" in response.json()["detail"]
    (record,) = [record for record in caplog.records if record.name == "api.errors"]
    assert record.exc_info is not None
    assert "business" in str(record.exc_info[1])


async def test_one_line_is_logged_per_request_without_prompt_query_or_key(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = stand.key("alice")
    async with stand.client(key) as client:
        await client.post("/v1/jobs", json={**PATCHING, "label": "private label"})
        await client.get("/v1/jobs", params={"label": "private label"})
        await client.get("/v1/jobs/%0d%0aforged")
    ours = [record for record in caplog.records if record.name.startswith("api.")]
    lines = [record.getMessage() for record in ours if record.name == "api.access"]
    assert lines == ["POST /v1/jobs 202", "GET /v1/jobs 200", "GET /v1/jobs/%0d%0aforged 404"]
    everything = "\n".join(logs.JsonFormatter().format(record) for record in ours)
    assert '"owner": "alice"' in everything
    for private in (CLEAN, "private label", key, key.rsplit("_", 1)[1]):
        assert private not in everything


def test_a_log_line_is_one_json_object_with_the_request_and_the_fields() -> None:
    record = logging.LogRecord("api.x", logging.INFO, __file__, 1, "hello %s", ("there\n",), None)
    record.fields = {"ms": 1.5}
    token = logs.request_id.set("r-1")
    try:
        line = logs.JsonFormatter().format(record)
        console = logs.ConsoleFormatter().format(record)
    finally:
        logs.request_id.reset(token)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("info", "api.x", "hello there\n")
    assert (entry["request_id"], entry["ms"]) == ("r-1", 1.5)
    assert console.endswith("request_id=r-1 ms=1.5")


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, __file__, 1, "failed", (), (ValueError, error, error.__traceback__)
        )
    assert "ValueError: no" in json.loads(logs.JsonFormatter().format(record))["exception"]
    assert "ValueError: no" in logs.ConsoleFormatter().format(record)
