"""How much a keeper does at once, so that batches take turns and requests come first."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

LINES_AT_ONCE = 100
SECONDS_AT_ONCE = 1.0

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pace:
    """`rest`: after each second of computing so many seconds of none, in which requests have the process to themselves.
    `stopping`: whether the process is to end."""

    rest: float = 0.0
    stopping: Callable[[], bool] = field(default=lambda: False)

    def some(self, items: Iterable[Item]) -> Iterator[Item]:
        """As many of the items as make one piece of work, with a rest after each."""
        started = time.monotonic()
        for count, item in enumerate(items):
            if count == LINES_AT_ONCE or self.stopping():
                return
            # However long the first one took to come, there is always one: else nothing would ever get on.
            if count and time.monotonic() - started > SECONDS_AT_ONCE:
                return
            begun = time.thread_time()
            yield item
            if self.rest:
                time.sleep(self.rest * (time.thread_time() - begun))
