"""When a message that was not accepted is sent again: eleven tries in some twenty-two hours.

A job is kept for a day after its end, so the last try finds it still.
"""

import random

PAUSES_S = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 21_600, 28_800)
"""After the first try, after the second, and so on."""

MAX_TRIES = len(PAUSES_S) + 1

_SHORTEST = 0.8
"""Pauses are shortened at random down to this share, so that many messages do not come back at one moment."""


def pause_after(attempt: int, chance: float | None = None) -> float | None:
    """Seconds from try number `attempt`, the first being 1, to the next; None after the last.

    `chance` between 0 and 1 takes the place of the random number.
    """
    if attempt >= MAX_TRIES:
        return None
    share = random.random() if chance is None else chance  # noqa: S311 - spreads load, guards nothing
    return PAUSES_S[attempt - 1] * (_SHORTEST + (1 - _SHORTEST) * share)
