"""Who is next: owners in turn, each one's jobs in the order of their creation."""

from collections import deque


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

    def next(self) -> str | None:
        if not self._owners:
            return None
        owner = self._owners.popleft()
        line = self._lines[owner]
        job_id = line.pop(min(line))
        if line:
            self._owners.append(owner)
        return job_id
