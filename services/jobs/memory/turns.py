"""Who is next: owners in turn, each one's jobs in the order of their creation."""

from collections import deque
from collections.abc import Callable


class Turns:
    """The line of one pool, priority and size; jobs are known by the number of their creation."""

    def __init__(self) -> None:
        self._owners: deque[str] = deque()
        self._lines: dict[str, dict[int, str]] = {}

    def add(self, owner: str, number: int, job_id: str) -> None:
        line = self._lines.setdefault(owner, {})
        if not line:
            self._owners.append(owner)
        line[number] = job_id

    def remove(self, owner: str, number: int) -> None:
        line = self._lines.get(owner, {})
        if line.pop(number, None) is not None and not line:
            self._owners.remove(owner)

    def next(self, may_start: Callable[[str, str], bool]) -> str | None:
        """The next job of the owner whose turn it is; owners for whom `may_start` says no are passed over."""
        for _ in range(len(self._owners)):
            owner = self._owners.popleft()
            line = self._lines[owner]
            first = min(line)
            job_id = line[first] if may_start(owner, line[first]) else None
            if job_id is not None:
                del line[first]
            if line:
                self._owners.append(owner)
            if job_id is not None:
                return job_id
        return None

    def waiting(self, owner: str) -> int:
        return len(self._lines.get(owner, ()))

    def before(self, owner: str, number: int) -> int:
        """Jobs that go before this one of `owner`, if no more come: at each turn of its owner's, one of the others'."""
        rank = sum(earlier < number for earlier in self._lines[owner])
        turn = self._owners.index(owner)
        lengths = [len(self._lines[other]) for other in self._owners]
        return rank + sum(min(length, rank + (place < turn)) for place, length in enumerate(lengths) if place != turn)

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())
