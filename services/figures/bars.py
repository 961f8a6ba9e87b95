"""Ranked bars: horizontal, one per line, with standard errors where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.picture import Extent
from services.figures.scale import NEGATIVE, NEUTRAL, POSITIVE

_WIDTH = 3.2
_PITCH = 0.17
_GAP = 0.1
_TICKS = 5


@dataclass(frozen=True, eq=False)
class Bars:
    """One bar per name, red to the right of zero and blue to the left; the number stands beside it."""

    names: tuple[str, ...]
    values: FloatArray
    value_name: str
    errors: FloatArray | None = None
    title: str = ""

    @property
    def cells(self) -> int:
        return len(self.names)

    def extent(self) -> Extent:
        return _extent(self.names, self.title, len(self.names) * _PITCH)

    def draw(self, axes: Axes) -> None:
        heights = np.arange(len(self.names))
        values = np.nan_to_num(self.values, nan=0.0, posinf=0.0, neginf=0.0)
        colours = [POSITIVE if value > 0 else NEGATIVE for value in values]
        axes.barh(heights, values, height=0.7, color=colours)
        if self.errors is not None:
            axes.errorbar(values, heights, xerr=self.errors, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.5)
        errors = np.zeros_like(values) if self.errors is None else np.nan_to_num(self.errors)
        low, high = float(min((values - errors).min(), 0.0)), float(max((values + errors).max(), 0.0))
        _frame(axes, self.names, self.title, self.value_name)
        texts = [_short(stated) if np.isfinite(stated) else "no value" for stated in self.values]
        _room_for_numbers(axes, low, high, texts)
        for height, value, error, text in zip(heights, values, errors, texts, strict=True):
            _number(axes, float(value), float(error), float(height), text)


@dataclass(frozen=True, eq=False)
class PairedBars:
    """Two bars per name: before (grey) and after (red)."""

    names: tuple[str, ...]
    before: FloatArray
    after: FloatArray
    value_name: str
    legend: tuple[str, str]
    title: str = ""

    @property
    def cells(self) -> int:
        return 2 * len(self.names)

    def extent(self) -> Extent:
        return _extent(self.names, self.title, len(self.names) * 2 * _PITCH + 0.1)

    def draw(self, axes: Axes) -> None:
        heights = np.arange(len(self.names))
        series = ((self.before, -0.2, NEUTRAL), (self.after, 0.2, POSITIVE))
        for (values, offset, colour), name in zip(series, self.legend, strict=True):
            axes.barh(heights + offset, np.nan_to_num(values), height=0.36, color=colour, label=name)
        values = np.nan_to_num(np.concatenate([self.before, self.after]))
        _frame(axes, self.names, self.title, self.value_name)
        low, high = float(min(values.min(), 0.0)), float(max(values.max(), 0.0))
        _room_for_numbers(axes, low, high, [_short(value) for value in values])
        for shown, offset, _ in series:
            for height, value in zip(heights, shown, strict=True):
                if np.isfinite(value):
                    _number(axes, float(value), 0.0, float(height + offset), _short(value))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=labels.SMALL)


def _extent(names: tuple[str, ...], title: str, height: float) -> Extent:
    left = labels.widest(names, labels.SMALL) + 0.15
    extra = labels.width(title, labels.NORMAL) - _WIDTH
    return Extent(_WIDTH, max(height, 0.4), left, max(extra, 0.0) + 0.3, 0.26, 0.5)


def _frame(axes: Axes, names: tuple[str, ...], title: str, value_name: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_title(title)
    axes.set_xlabel(value_name)
    axes.xaxis.set_major_locator(MaxNLocator(_TICKS, steps=[1, 2, 2.5, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)


def _room_for_numbers(axes: Axes, low: float, high: float, texts: Sequence[str]) -> None:
    """Leave free, beyond the longest bar of each side, the width of the widest number."""
    room, sides = labels.widest(texts, labels.SMALL) + _GAP, (low < 0) + (high > 0)
    beyond = (high - low) * room / (_WIDTH - sides * room)
    axes.set_xlim(low - beyond if low < 0 else 0.0, high + beyond if high > 0 else 0.0 if low < 0 else 1.0)


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _number(axes: Axes, value: float, error: float, height: float, text: str) -> None:
    end, alignment, shift = (value - error, "right", -3) if value < 0 else (value + error, "left", 3)
    axes.annotate(
        text,
        (end, height),
        xytext=(shift, 0),
        textcoords="offset points",
        ha=alignment,
        va="center",
        fontsize=labels.SMALL,
    )
