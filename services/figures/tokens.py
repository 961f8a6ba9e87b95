"""Tokens as running text, each on the colour of its number, with the number below it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.colour_bar import add_colour_bar
from services.figures.picture import Extent
from services.figures.scale import Scale

_WIDTH = 6.5
_LINE, _BOX = 0.46, 0.22
_PADDING = 0.05
_TEXT = 9.0
_NUMBER = 6.0
_COST = 50
"""A token takes as long to draw as so many plain cells of a heatmap."""


@dataclass(frozen=True, eq=False)
class TokenText:
    """One number per token; the lines break as in a text, at the width of a page. `bar`: the scale stands below."""

    tokens: tuple[str, ...]
    values: FloatArray
    scale: Scale
    title: str = ""
    bar: bool = True

    @property
    def cells(self) -> int:
        return _COST * len(self.tokens)

    def extent(self) -> Extent:
        lines = max((line for line, _, _ in self._boxes()), default=0) + 1
        extra = labels.width(self.title, labels.NORMAL) - _WIDTH
        return Extent(
            _WIDTH, lines * _LINE, 0.05, max(extra, 0.0) + 0.1, 0.3 if self.title else 0.1, 0.62 if self.bar else 0.1
        )

    def draw(self, axes: Axes) -> None:
        height = self.extent().height
        axes.set_xlim(0, _WIDTH)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        axes.set_title(self.title)
        for (line, left, width), token, value in zip(self._boxes(), self.tokens, self.values, strict=True):
            top, middle = line * _LINE, left + width / 2
            box = Rectangle((left, top), width, _BOX, facecolor=self.scale.colour(value), linewidth=0)
            axes.add_patch(box)
            ink = self.scale.ink(value)
            axes.text(middle, top + _BOX / 2, token, ha="center", va="center", fontsize=_TEXT, color=ink)
            axes.text(
                middle,
                top + _BOX + 0.08,
                self._number(value),
                ha="center",
                va="center",
                fontsize=_NUMBER,
                color="#444444",
            )
        if not self.bar:
            return
        below, size = height + 0.08, (2.5, 0.09)
        add_colour_bar(axes, self.scale, right=0.0, down=below, size=size, orientation="horizontal", values=self.values)

    def _number(self, value: float) -> str:
        """As many decimals as the largest number needs to show two or three digits."""
        if not np.isfinite(value):
            return ""
        decimals = min(max(2 - math.floor(math.log10(self.scale.high)), 0), 9)
        text = f"{value:+.{decimals}f}"
        return "0" if float(text) == 0 else text.replace("-", "−")

    def _boxes(self) -> Iterator[tuple[int, float, float]]:
        """Each token's line, left edge and width, in inches."""
        line, left = 0, 0.0
        for token in self.tokens:
            width = max(labels.width(token, _TEXT) + 2 * _PADDING, 0.3)
            if left > 0 and left + width > _WIDTH:
                line, left = line + 1, 0.0
            yield line, left, width
            left += width + 0.02
