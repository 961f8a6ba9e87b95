"""How much is done at once."""

import time
from collections.abc import Iterator

from services.batches.pace import LINES_AT_ONCE, SECONDS_AT_ONCE, Pace


def test_a_piece_of_work_has_a_bounded_number_of_lines() -> None:
    assert list(Pace().some(range(10_000))) == list(range(LINES_AT_ONCE))


def test_a_slow_store_still_gets_a_line_on() -> None:
    def slow() -> Iterator[int]:
        time.sleep(SECONDS_AT_ONCE + 0.1)
        yield from range(10)

    assert list(Pace().some(slow())) == [0]


def test_nothing_more_is_begun_when_the_process_is_to_end() -> None:
    stopping = iter([False, False, True])
    assert list(Pace(stopping=lambda: next(stopping)).some(range(10))) == [0, 1]
