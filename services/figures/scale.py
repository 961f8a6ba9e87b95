"""Colour scales: zero-centred and symmetric for what has a sign, sequential for probabilities, attention and sizes."""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize

from services.contracts.tensor import FloatArray

SIGNED = "RdBu_r"
SEQUENTIAL = "Blues"
BLANK = "#d9d9d9"
"""What a cell without a value shows: no colour of either scale."""

POSITIVE, NEGATIVE, NEUTRAL = "#b2182b", "#2166ac", "#555555"
"""The scale's own red and blue, for bars and points."""

_DARK = 0.45
"""Below this luminance text is white."""


@dataclass(frozen=True)
class Scale:
    """From numbers to colours; `label` says what the numbers are, units included."""

    colours: str
    low: float
    high: float
    label: str

    @property
    def colormap(self) -> Colormap:
        return colormaps[self.colours]

    @property
    def norm(self) -> Normalize:
        return Normalize(self.low, self.high)

    def colour(self, value: float) -> str:
        """The colour of one value, as #rrggbb."""
        return BLANK if not np.isfinite(value) else _hex(self._rgb(value))

    def ink(self, value: float) -> str:
        """A colour in which text can be read on top of `colour(value)`."""
        if not np.isfinite(value):
            return "black"
        red, green, blue = self._rgb(value)
        return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < _DARK else "black"

    def _rgb(self, value: float) -> tuple[float, float, float]:
        red, green, blue, _ = self.colormap(float(np.clip(self.norm(value), 0, 1)))
        return red, green, blue


def signed(label: str, *arrays: FloatArray) -> Scale:
    """White at zero, as far to the red as to the blue, wide enough for all `arrays`."""
    largest = _largest(arrays)
    return Scale(SIGNED, -largest, largest, label)


def sequential(label: str, *arrays: FloatArray) -> Scale:
    """White at zero, darkest at the largest value."""
    return Scale(SEQUENTIAL, 0.0, _largest(arrays), label)


def probability(label: str) -> Scale:
    """White at 0, darkest at 1."""
    return Scale(SEQUENTIAL, 0.0, 1.0, label)


def _largest(arrays: tuple[FloatArray, ...]) -> float:
    magnitudes = [float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in arrays]
    return max(magnitudes, default=0.0) or 1.0


def _hex(rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
