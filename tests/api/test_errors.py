import json
from typing import Any

import pytest
from starlette.responses import Response

from api.errors import (
    MAX_ITEMS,
    PROBLEM_MEDIA_TYPE,
    STATUS,
    InvalidParameters,
    ProblemItem,
    problem_response,
    status_of,
)
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, NotFound, Unavailable, Violation


def sent(response: Response) -> dict[str, Any]:
    problem: dict[str, Any] = json.loads(bytes(response.body))
    return problem


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(ErrorCode)
    assert all(400 <= status < 600 for status in STATUS.values())


def test_a_problem_has_the_members_of_rfc_9457_and_names_the_request() -> None:
    response = problem_response(LensdError(ErrorCode.JOB_RUNNING, "it runs"), path="/v1/jobs/x", request_id="r1")
    assert response.status_code == 409
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    assert sent(response) == {
        "type": "urn:lensd:error:job_running",
        "title": "Job running",
        "status": 409,
        "detail": "it runs",
        "code": "job_running",
        "instance": "/v1/jobs/x",
        "request_id": "r1",
        "errors": [],
    }


def test_an_unknown_model_is_a_wrong_body_in_a_job_and_not_found_in_a_path() -> None:
    violation = Violation("/model", ErrorCode.UNKNOWN_MODEL, "no such model")
    assert status_of(InvalidSpec([violation])) == 422
    assert status_of(NotFound(ErrorCode.UNKNOWN_MODEL, "no such model")) == 404


def test_only_the_first_violations_are_listed_and_the_rest_counted() -> None:
    violations = [Violation(f"/{index}", ErrorCode.UNKNOWN_LAYER, "no") for index in range(MAX_ITEMS + 5)]
    problem = sent(problem_response(InvalidSpec(violations), path="/", request_id="r"))
    assert len(problem["errors"]) == MAX_ITEMS
    assert problem["detail"] == f"no (and {MAX_ITEMS + 4} more)"
    assert problem["errors"][0] == {"pointer": "/0", "parameter": None, "code": "unknown_layer", "message": "no"}


def test_parameters_are_named_where_there_is_no_pointer() -> None:
    error = InvalidParameters((ProblemItem(parameter="limit", code=ErrorCode.INVALID_REQUEST, message="too large"),))
    problem = sent(problem_response(error, path="/", request_id="r"))
    assert problem["errors"][0]["parameter"] == "limit"
    assert problem["errors"][0]["pointer"] is None


def test_try_again_later_says_when() -> None:
    response = problem_response(Unavailable(ErrorCode.QUEUE_FULL, "full", 7), path="/", request_id="r")
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")


def test_a_refused_key_is_told_the_scheme() -> None:
    response = problem_response(LensdError(ErrorCode.UNAUTHENTICATED, "who?"), path="/", request_id="r")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("text", ["\ud800", "\x00\x1f", "é\U0001f600"])
def test_no_text_can_keep_a_problem_from_being_sent(text: str) -> None:
    response = problem_response(LensdError(ErrorCode.INVALID_JSON, text), path=text, request_id="r")
    assert sent(response)["detail"] == text


def test_a_very_long_message_is_cut() -> None:
    response = problem_response(LensdError(ErrorCode.INVALID_JSON, "x" * 100_000), path="/" * 100_000, request_id="r")
    assert len(response.body) < 3_000
