"""The OpenAPI document: fresh, whole, and shaped for SDKs."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from api.auth import rate_headers
from api.openapi import FILE, describe, render
from api.routes import ROUTERS
from api.routes.examples import JOBS
from api.routes.jobs import JobQuery
from services.contracts.job import JobSpec
from services.tenants.limits import Rate, RateStanding

SCHEMAS = describe()["components"]["schemas"]
NO_KEY = {"check_liveness", "check_readiness"}


def operations() -> list[Any]:
    return [
        pytest.param(operation, id=operation["operationId"])
        for item in describe()["paths"].values()
        for operation in item.values()
    ]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_committed_file_is_what_the_contracts_say() -> None:
    assert FILE.read_text(encoding="utf-8") == render(), "openapi.yaml is stale: run `make openapi`"


def test_it_is_openapi_3_1() -> None:
    assert describe()["openapi"].startswith("3.1")


def test_every_route_is_documented_under_its_own_name() -> None:
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    names = [route.operation_id for route in routes]
    assert sorted(filter(None, names)) == sorted(operation.id for operation in operations())
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("operation", operations())
def test_every_route_says_what_it_does_and_what_it_answers(operation: dict[str, Any]) -> None:
    assert operation["description"]
    answers = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
    assert answers
    for status, answer in answers.items():
        assert answer["description"]
        assert status == "204" or all(content["schema"] for content in answer["content"].values())


@pytest.mark.parametrize("operation", operations())
def test_every_error_is_a_problem_and_nothing_else(operation: dict[str, Any]) -> None:
    errors = {status: answer for status, answer in operation["responses"].items() if not status.startswith("2")}
    assert {"400", "408", "431", "500"} <= set(errors)
    if operation["operationId"] not in NO_KEY:
        assert {"401", "403", "503"} <= set(errors)
        assert operation["security"] == [{"ApiKey": []}]
    for answer in errors.values():
        assert answer["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


@pytest.mark.parametrize("operation", operations())
def test_every_answer_that_has_limits_to_tell_of_declares_the_headers_for_it(operation: dict[str, Any]) -> None:
    declared = {status: set(answer.get("headers", {})) for status, answer in operation["responses"].items()}
    rates = {"RateLimit", "RateLimit-Policy"}
    assert all("Retry-After" in declared[status] for status in ("429", "503") if status in declared)
    for status, names in declared.items():
        with_key = operation["operationId"] not in NO_KEY and (status.startswith("2") or status == "429")
        assert names & rates == (rates if with_key else set())


def test_the_headers_of_limits_are_declared_as_they_are_written() -> None:
    rate = Rate(per_second=0.3, burst=7)
    written = rate_headers(RateStanding(rate, allowed=True, remaining=3, full_in_s=1.2, retry_after_s=0.0))
    for name, value in written.items():
        for declared in (name, f"{name}-If-Known"):
            header = describe()["components"]["headers"][declared]
            assert re.search(header["schema"]["pattern"], value)
            assert re.search(header["schema"]["pattern"], header["example"])


@pytest.mark.parametrize("operation", operations())
def test_what_takes_a_body_or_a_parameter_can_refuse_it(operation: dict[str, Any]) -> None:
    if "requestBody" in operation:
        assert {"413", "415", "422"} <= set(operation["responses"])
    if operation.get("parameters"):
        assert "422" in operation["responses"]


def test_every_reference_leads_somewhere() -> None:
    parts = describe()["components"]
    known = {f"#/components/{part}/{name}" for part in ("schemas", "headers") for name in parts[part]}
    assert set(references(describe())) <= known


def test_no_schema_is_split_in_two_and_none_is_the_frameworks() -> None:
    assert not [name for name in SCHEMAS if name.endswith(("-Input", "-Output"))]
    assert "HTTPValidationError" not in SCHEMAS


@pytest.mark.parametrize(("union", "ending"), [("JobSpec", "Spec"), ("JobResult", "Result")])
def test_kinds_are_told_apart_by_their_tag(union: str, ending: str) -> None:
    discriminator = SCHEMAS[union]["discriminator"]
    assert discriminator["propertyName"] == "kind"
    assert set(discriminator["mapping"]) == {job["kind"] for job in JOBS.values()}
    for kind, reference in discriminator["mapping"].items():
        for schema in told_apart(reference):
            assert schema["title"].endswith(ending)
            assert schema["properties"]["kind"]["const"] == kind
            assert "kind" in schema["required"]


def told_apart(reference: str) -> list[dict[str, Any]]:
    """The schemas that a tag may stand for: one, or those that a second tag, the method, tells apart."""
    schema = SCHEMAS[reference.rsplit("/", 1)[1]]
    if "oneOf" not in schema:
        return [schema]
    assert schema["discriminator"]["propertyName"] == "method"
    assert {each["$ref"] for each in schema["oneOf"]} == set(schema["discriminator"]["mapping"].values())
    return [found for each in schema["oneOf"] for found in told_apart(each["$ref"])]


def test_the_filter_by_kind_knows_every_kind() -> None:
    kinds = JobQuery.model_json_schema()["properties"]["kind"]["anyOf"][0]["enum"]
    assert set(kinds) == set(SCHEMAS["JobSpec"]["discriminator"]["mapping"])


def test_requests_are_closed_and_answers_are_open_and_complete() -> None:
    assert SCHEMAS["PatchingSpec"]["additionalProperties"] is False
    answer = SCHEMAS["PatchingResult"]
    assert "additionalProperties" not in answer
    assert answer["required"] == list(answer["properties"])


def test_names_of_another_form_are_no_names() -> None:
    positions = SCHEMAS["Pair"]["properties"]["positions"]
    assert positions["propertyNames"]["pattern"]
    assert positions["additionalProperties"]["type"] == "integer"
    assert "patternProperties" not in render()


def test_what_a_line_or_an_event_holds_is_told() -> None:
    paths = describe()["paths"]
    lines = paths["/v1/saes/{sae_id}/labels"]["post"]["requestBody"]["content"]["application/jsonl"]
    assert lines["x-itemSchema"] == {"$ref": "#/components/schemas/LabelLine"}
    events = paths["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    data = events["x-itemSchema"]["properties"]["data"]
    assert [found.rsplit("/", 1)[1] for found in references(data)] == ["JobState", "JobTokens"]


def test_no_default_is_an_object() -> None:
    fields = [field for schema in SCHEMAS.values() for field in schema.get("properties", {}).values()]
    assert not [field for field in fields if isinstance(field.get("default"), dict)]


def test_the_jobs_shown_as_examples_are_jobs() -> None:
    adapter: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
    for name, job in JOBS.items():
        assert name.startswith(adapter.validate_json(_dumped(job)).kind)


def _dumped(job: Any) -> bytes:
    return TypeAdapter(Any).dump_json(job)
