"""How far a pass is and how long it still takes."""

import pytest

from services.saes.progress import how_far


@pytest.mark.parametrize(
    ("done", "first", "seconds", "said"),
    [
        (250, 0, 600.0, "25%, about 30 min left"),
        (250, 150, 600.0, "25%, about 75 min left"),
        (999, 0, 600.0, "99%, about 0 min left"),
        (1_000, 990, 5.0, "100%, about 0 min left"),
    ],
)
def test_the_time_left_goes_by_what_this_run_did(done: int, first: int, seconds: float, said: str) -> None:
    assert how_far(done, 1_000, first=first, seconds=seconds) == said
