"""A doorbell whose rings wait to be heard."""

from collections import Counter


class MemoryDoorbell:
    def __init__(self) -> None:
        self._rings: Counter[str] = Counter()

    def ring(self, pool: str) -> None:
        self._rings[pool] += 1

    def waiting(self, pool: str) -> int | None:
        return self._rings[pool]

    def hear(self, pool: str) -> bool:
        """Take one ring away, as a woken slot does; whether there was one."""
        heard = self._rings[pool] > 0
        self._rings[pool] -= heard
        return heard
