"""A short version of the drill `tests.chaos.fuzz`: what the API answers is what its document says, over real HTTP."""

from tests.chaos.fuzz import Effort, drill
from tests.chaos.fuzz_tally import report
from tests.stack.harness import RunningStack

CHECKS = {
    "allow_header_conformance",
    "content_type_conformance",
    "ensure_resource_availability",
    "ignored_auth",
    "missing_required_header",
    "negative_data_rejection",
    "not_a_server_error",
    "object_level_authorization",
    "positive_data_acceptance",
    "response_headers_conformance",
    "response_schema_conformance",
    "status_code_conformance",
    "unsupported_method",
    "use_after_free",
}


def test_every_answer_to_good_and_bad_requests_is_a_documented_one(stack: RunningStack) -> None:
    effort = Effort(examples=2, boundaries_of_bodies=False)
    tally = drill(stack.base_url, stack.api_key, effort, requests=300, seed=1, seconds=120)
    assert not tally.failures, report(tally)
    assert tally.requests >= 300
    assert set(tally.checks) >= CHECKS
    assert {"200", "401", "404", "405", "422"} <= set(tally.by_status)
