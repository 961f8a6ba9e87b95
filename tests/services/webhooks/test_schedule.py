"""When messages are sent again."""

from services.jobs.policy import JobPolicy
from services.webhooks.schedule import PAUSES_S, pause_after


def test_the_tries_grow_apart_and_end_within_the_time_that_a_job_is_kept() -> None:
    longest = [pause_after(attempt, chance=1) or 0 for attempt in range(1, len(PAUSES_S) + 1)]
    assert longest == sorted(longest)
    assert 0 < sum(longest) < JobPolicy().retention_s - 3_600
    assert pause_after(len(PAUSES_S) + 1) is None


def test_pauses_are_spread_but_never_longer_than_said() -> None:
    spread = {pause_after(3) for _ in range(50)}
    assert len(spread) > 10
    assert all(0.8 * PAUSES_S[2] <= (pause or 0) <= PAUSES_S[2] for pause in spread)
