"""Which jobs a slot of the worker takes: neither large ones nor one owner's ever hold every slot."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from services.jobs.record import Claim, Size

ClaimFor = Callable[[Sequence[Size], Mapping[Size, Collection[str]]], Claim | None]
"""Claims a job of some sizes, most wanted first, that is of none of the owners named for its size."""


class Slots:
    """At most `large_slots` of the worker's slots run large jobs at a time; the others wait for small ones.

    Until half of `large_slots` are at it large jobs are preferred, from then on small ones: so neither kind starves
    where there are two slots or more. Slots claim one at a time, so one that may take no large job is right to go to
    sleep: every slot that runs one will claim again.

    No owner holds more than seven eighths of the slots, nor of those for large jobs: another's job starts at once.
    """

    def __init__(self, slots: int, large_slots: int) -> None:
        self._large_slots = large_slots
        self._owner_slots = {Size.SMALL: _for_one_owner(slots), Size.LARGE: _for_one_owner(large_slots)}
        self._large_running = 0
        self._running_of: Counter[tuple[str, Size]] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def next_job(self, claim: ClaimFor) -> Iterator[Claim | None]:
        """What `claim` finds for the sizes that a slot may take now, without the owners that hold all they may.

        It counts as running during the block.
        """
        with self._lock:
            claimed = claim(self._sizes(), self._full_owners())
            self._count(claimed, 1)
        try:
            yield claimed
        finally:
            with self._lock:
                self._count(claimed, -1)

    def _count(self, claimed: Claim | None, more: int) -> None:
        if claimed is not None:
            self._large_running += more * (claimed.size is Size.LARGE)
            self._running_of[claimed.job.owner, claimed.size] += more
            self._running_of += Counter()  # leaves out what is at zero

    def _full_owners(self) -> Mapping[Size, Collection[str]]:
        """Who may take no more slots; large jobs count among all jobs as well."""
        large = {owner: count for (owner, size), count in self._running_of.items() if size is Size.LARGE}
        every: Counter[str] = Counter()
        for (owner, _), count in self._running_of.items():
            every[owner] += count
        full = {owner for owner, count in every.items() if count >= self._owner_slots[Size.SMALL]}
        full_of_large = {owner for owner, count in large.items() if count >= self._owner_slots[Size.LARGE]}
        return {Size.SMALL: full, Size.LARGE: full | full_of_large}

    def _sizes(self) -> Sequence[Size]:
        """The sizes to take now, most wanted first."""
        if self._large_running >= self._large_slots:
            return (Size.SMALL,)
        if 2 * self._large_running < self._large_slots:
            return (Size.LARGE, Size.SMALL)
        return (Size.SMALL, Size.LARGE)


def _for_one_owner(slots: int) -> int:
    return max(1, slots - max(1, slots // 8))
