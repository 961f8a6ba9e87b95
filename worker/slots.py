"""Which jobs a slot of the worker takes: never so many large ones that a small one finds every slot busy."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from services.jobs.record import Claim, Size


class Slots:
    """At most `large_slots` of the worker's slots run large jobs at a time; the others wait for small ones.

    Until half of `large_slots` are at it large jobs are preferred, from then on small ones: so neither kind starves
    where there are two slots or more. Slots claim one at a time, so one that may take no large job is right to go to
    sleep: every slot that runs one will claim again.
    """

    def __init__(self, large_slots: int) -> None:
        self._large_slots = large_slots
        self._large_running = 0
        self._lock = threading.Lock()

    @contextmanager
    def next_job(self, claim: Callable[[Sequence[Size]], Claim | None]) -> Iterator[Claim | None]:
        """What `claim` finds for the sizes that a slot may take now; it counts as running during the block."""
        with self._lock:
            claimed = claim(self._sizes())
            large = claimed is not None and claimed.size is Size.LARGE
            self._large_running += large
        try:
            yield claimed
        finally:
            with self._lock:
                self._large_running -= large

    def _sizes(self) -> Sequence[Size]:
        """The sizes to take now, most wanted first."""
        if self._large_running >= self._large_slots:
            return (Size.SMALL,)
        if 2 * self._large_running < self._large_slots:
            return (Size.LARGE, Size.SMALL)
        return (Size.SMALL, Size.LARGE)
