"""What a worker may be told about its slots."""

import pytest
from pydantic import ValidationError

from worker.settings import WorkerSettings


@pytest.mark.parametrize(("slots", "large_slots"), [(1, 1), (2, 1), (3, 2), (4, 3), (32, 24)])
def test_three_quarters_of_the_slots_take_large_jobs_unless_told_otherwise(slots: int, large_slots: int) -> None:
    assert WorkerSettings(slots=slots).large_slots == large_slots


def test_the_last_slot_cannot_be_given_to_large_jobs() -> None:
    assert WorkerSettings(slots=4, large_slots=3).large_slots == 3
    with pytest.raises(ValidationError, match=r"LENSD_LARGE_SLOTS is 4, .* at most 3"):
        WorkerSettings(slots=4, large_slots=4)
