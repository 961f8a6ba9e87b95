"""The stores of endpoints: the fake and the real one."""

from datetime import UTC, datetime, timedelta

import pytest

from services.contracts.errors import Conflict, ErrorCode
from services.contracts.webhook import DeliveryOutcome
from services.webhooks.endpoint import MAX_ENDPOINTS, RetiringSecret, new_endpoint_id, new_secret
from services.webhooks.store import KEPT_OUTCOMES, Settlement, not_to_be_told
from tests.services.webhooks.bench import Bench, new_endpoint

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def outcome_of(attempt: int) -> DeliveryOutcome:
    return DeliveryOutcome(
        message_id="msg_a",
        job_id="job_a",
        at=NOW,
        attempt=attempt,
        outcome="will_retry",
        status=None,
        reason="timed_out",
        next_attempt_at=NOW + timedelta(seconds=5),
    )


def test_an_endpoint_comes_back_as_it_was(bench: Bench) -> None:
    plain = new_endpoint("ada").model_copy(update={"description": None})
    wordy = new_endpoint("ada").model_copy(
        update={"description": "Nächte\n\u2028 \U0001f600", "url": "https://a.b/?c=%20"}
    )
    for endpoint in (plain, wordy):
        bench.webhooks.create(endpoint)
        assert bench.webhooks.get(endpoint.id) == endpoint
    assert bench.webhooks.list("ada") == (plain, wordy)
    assert bench.webhooks.list("bob") == ()
    assert bench.webhooks.get(new_endpoint_id()) is None


def test_an_owner_has_a_bounded_number_of_endpoints_and_deleting_makes_room(bench: Bench) -> None:
    endpoints = [bench.endpoint() for _ in range(MAX_ENDPOINTS)]
    with pytest.raises(Conflict) as refusal:
        bench.endpoint()
    assert refusal.value.code is ErrorCode.TOO_MANY_WEBHOOKS
    bench.endpoint("bob")
    assert bench.webhooks.delete(endpoints[0].id)
    bench.endpoint()
    assert len(bench.webhooks.list("ada")) == MAX_ENDPOINTS


def test_a_deleted_endpoint_is_gone_once(bench: Bench) -> None:
    endpoint = bench.endpoint()
    assert bench.webhooks.delete(endpoint.id)
    assert not bench.webhooks.delete(endpoint.id)
    assert bench.webhooks.get(endpoint.id) is None
    assert bench.webhooks.list("ada") == ()
    assert not bench.webhooks.rotate(endpoint.id, new_secret(), None)
    assert bench.webhooks.get(endpoint.id) is None


def test_a_rotation_keeps_the_present_secret_for_as_long_as_said(bench: Bench) -> None:
    endpoint = bench.endpoint()
    second, third = new_secret(), new_secret()
    assert bench.webhooks.rotate(endpoint.id, second, NOW)
    kept = bench.webhooks.get(endpoint.id)
    assert kept is not None
    assert (kept.secret, kept.retiring) == (second, RetiringSecret(secret=endpoint.secret, until=NOW))
    assert bench.webhooks.rotate(endpoint.id, third, None)
    assert bench.webhooks.get(endpoint.id) == endpoint.model_copy(update={"secret": third})


def test_the_latest_outcomes_are_kept_newest_first(bench: Bench) -> None:
    endpoint = bench.endpoint()
    bench.cancelled(endpoint)
    for attempt in range(1, KEPT_OUTCOMES + 4):
        (delivery,) = bench.claim()
        assert delivery.attempt == attempt
        assert bench.deliveries.settle(delivery, Settlement(0.0, outcome_of(attempt)))
    kept = bench.webhooks.outcomes(endpoint.id)
    assert [outcome.attempt for outcome in kept] == list(range(KEPT_OUTCOMES + 3, 3, -1))
    assert kept[-1] == outcome_of(4)
    bench.webhooks.delete(endpoint.id)
    assert list(bench.webhooks.outcomes(endpoint.id)) == []


def test_a_job_may_name_its_owners_endpoints_alone(bench: Bench) -> None:
    endpoint = bench.endpoint()
    assert not_to_be_told(bench.webhooks, "ada", endpoint.id) is None
    absent = new_endpoint_id()
    foreign, missing = (not_to_be_told(bench.webhooks, "bob", name) for name in (endpoint.id, absent))
    assert foreign is not None
    assert missing is not None
    assert foreign.message.replace(endpoint.id, absent) == missing.message
    assert (foreign.pointer, foreign.code) == (missing.pointer, missing.code) == ("/webhook", ErrorCode.UNKNOWN_WEBHOOK)


def test_a_disabled_endpoint_is_named_by_no_job(bench: Bench) -> None:
    endpoint = bench.endpoint()
    bench.cancelled(endpoint)
    (delivery,) = bench.claim()
    bench.deliveries.settle(delivery, Settlement(disable=True))
    disabled = bench.webhooks.get(endpoint.id)
    assert disabled is not None
    assert disabled.disabled_at is not None
    wrong = not_to_be_told(bench.webhooks, "ada", endpoint.id)
    assert wrong is not None
    assert "410" in wrong.message
