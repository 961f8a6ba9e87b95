"""A picture before it is drawn: a title, notes, and panels that know their size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from matplotlib.axes import Axes

from services.contracts.errors import Conflict, ErrorCode

MAX_CELLS = 100_000
MAX_SIDE = 40.0
"""The longest side of a picture, in inches."""


@dataclass(frozen=True)
class Extent:
    """The inches that a panel takes: its axes, and the room around them for labels."""

    width: float
    height: float
    left: float = 0.1
    right: float = 0.1
    top: float = 0.1
    bottom: float = 0.1

    @property
    def outer_width(self) -> float:
        return self.left + self.width + self.right

    @property
    def outer_height(self) -> float:
        return self.top + self.height + self.bottom


class Panel(Protocol):
    """One pair of axes of a picture."""

    @property
    def cells(self) -> int:
        """How many things it draws."""

    def extent(self) -> Extent:
        """The room it needs."""

    def draw(self, axes: Axes) -> None:
        """Draw onto axes of that size."""


@dataclass(frozen=True)
class Picture:
    """Rows of panels under a title; the notes below say what the numbers alone do not."""

    title: str
    rows: tuple[tuple[Panel, ...], ...]
    notes: tuple[str, ...] = ()


def grid(panels: Sequence[Panel], columns: int) -> tuple[tuple[Panel, ...], ...]:
    """The panels in rows of `columns`."""
    return tuple(tuple(panels[start : start + columns]) for start in range(0, len(panels), columns))


def too_large(what: str) -> Conflict:
    message = f"{what}: too much for one picture; fetch the numbers from /result, or send a job that sweeps less"
    return Conflict(ErrorCode.FIGURE_TOO_LARGE, message)


def nothing_to_draw(why: str) -> Conflict:
    return Conflict(ErrorCode.NO_FIGURE, f"there is nothing to draw: {why}")
