"""Inputs in groups, so that what a job holds at once does not grow with how many it has."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def together(items: Sequence[Item], size: Callable[[Item], int], at_once: int) -> Iterator[list[Item]]:
    """Neighbours whose sizes add up to at most `at_once`; one that is larger comes alone."""
    group: list[Item] = []
    held = 0
    for item in items:
        if group and held + size(item) > at_once:
            yield group
            group, held = [], 0
        group.append(item)
        held += size(item)
    if group:
        yield group
